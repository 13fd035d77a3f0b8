"""The Python interface: evaluate a pipeline or a callable, score pictures, evaluate inside a training loop."""

from opdbench.api.callback import EvaluationCallback
from opdbench.api.evaluation import evaluate, score
from opdbench.api.result import Result

__all__ = ["EvaluationCallback", "Result", "evaluate", "score"]
