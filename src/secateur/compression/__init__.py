"""The main job: `compress(model, data, budget=…)` prunes, proves, fine-tunes and measures."""

from __future__ import annotations

from secateur.compression.config import CalibrationConfig, CompressConfig, MeasureConfig, SplitConfig
from secateur.compression.job import Compressed, compress
from secateur.compression.material import check_weights
from secateur.compression.report import CompressReport, Measured

__all__ = [
    "CalibrationConfig",
    "CompressConfig",
    "CompressReport",
    "Compressed",
    "MeasureConfig",
    "Measured",
    "SplitConfig",
    "check_weights",
    "compress",
]
