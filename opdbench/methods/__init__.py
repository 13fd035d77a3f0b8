"""What a loss sees, and the subject of the benchmark: OPD and its gradient estimators.

A plug-in imports what it needs from here.
"""

from opdbench.methods.base import Actors, Batch, Loss, Rollout
from opdbench.methods.opd import visit

Method = Loss
"""The name of `Loss` in the first edition."""

__all__ = ["Actors", "Batch", "Loss", "Method", "Rollout", "visit"]
