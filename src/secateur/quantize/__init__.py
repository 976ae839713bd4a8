"""Quantization: weights and activations on grids of few levels."""

from __future__ import annotations

from secateur.quantize.binary import Binary
from secateur.quantize.calibration import CALIBRATIONS, Calibration, Divergence, LeastSquares, MinMax, Percentile
from secateur.quantize.granularity import GRANULARITIES, Granularity, PerChannel, PerGroup, PerTensor
from secateur.quantize.quantizer import Quantizer
from secateur.quantize.ternary import Ternary
from secateur.quantize.uniform import Affine, Symmetric

__all__ = [
    "CALIBRATIONS",
    "GRANULARITIES",
    "Affine",
    "Binary",
    "Calibration",
    "Divergence",
    "Granularity",
    "LeastSquares",
    "MinMax",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "Percentile",
    "Quantizer",
    "Symmetric",
    "Ternary",
]
