"""The main job: `compress(model, data, budget=…)` prunes, proves, fine-tunes and measures."""

from __future__ import annotations

from secateur.compression.config import CalibrationConfig, CompressConfig, MeasureConfig, SplitConfig
from secateur.compression.job import Compressed, compress
from secateur.compression.material import check_weights
from secateur.compression.pipeline import Composed, run_steps
from secateur.compression.report import CompressReport, Measured, Report, StepReport, StepsReport

__all__ = [
    "CalibrationConfig",
    "Composed",
    "CompressConfig",
    "CompressReport",
    "Compressed",
    "MeasureConfig",
    "Measured",
    "Report",
    "SplitConfig",
    "StepReport",
    "StepsReport",
    "check_weights",
    "compress",
    "run_steps",
]
