"""Everything a loss sees, and the subject of the benchmark: OPD and its gradient estimators.

Plug-ins import from here.
"""

from opdbench.methods.base import Actors, Batch, Loss, Rollout
from opdbench.methods.opd import visit

Method = Loss
"""Name of `Loss` in the first edition; kept for plug-ins."""

__all__ = ["Actors", "Batch", "Loss", "Method", "Rollout", "visit"]
