"""What makes pruning work without training: weights are solved for again, and errors say how narrow a group may get."""

from secateur.compensation.config import CompensateConfig, CurveConfig, ReconstructConfig
from secateur.compensation.refit import CompensateReport, Refit, compensate_

__all__ = ["CompensateConfig", "CompensateReport", "CurveConfig", "ReconstructConfig", "Refit", "compensate_"]
