"""What really runs in few bits here: ONNX Runtime and torchao, timed against the float model."""

from __future__ import annotations

from secateur.quantize.backends.onnx_int8 import export_int8
from secateur.quantize.backends.realised import BACKENDS, Realised, Unavailable, realise
from secateur.quantize.backends.torchao import int4_weights, int8_dynamic

__all__ = ["BACKENDS", "Realised", "Unavailable", "export_int8", "int4_weights", "int8_dynamic", "realise"]
