"""What makes pruning work without training: weights are solved for again, and errors say how narrow a group may get."""

from secateur.compensation.config import CompensateConfig, ReconstructConfig
from secateur.compensation.curves import error_curves
from secateur.compensation.norms import rebase_norms_, reestimate_norms_
from secateur.compensation.refit import CompensateReport, Refit, compensate_

__all__ = [
    "CompensateConfig",
    "CompensateReport",
    "ReconstructConfig",
    "Refit",
    "compensate_",
    "error_curves",
    "rebase_norms_",
    "reestimate_norms_",
]
