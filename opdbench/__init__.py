"""opdbench: a benchmark for giving one text-to-image diffusion model several skills at once.

`evaluate`, `score`, `EvaluationCallback` and `Result` are imported on first use, so `import opdbench` stays light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opdbench.api.callback import EvaluationCallback
    from opdbench.api.evaluation import evaluate, score
    from opdbench.api.result import Result

__version__ = "0.1.0"
__all__ = ["EvaluationCallback", "Result", "__version__", "evaluate", "score"]


def __getattr__(name: str) -> object:
    """Import a public name from `opdbench.api` when it is first used (PEP 562)."""
    if name in __all__:
        from opdbench import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
