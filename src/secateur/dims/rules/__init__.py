"""Rules of operators, one file per family. Importing this package registers them."""

from secateur.dims.rules import contraction, detection, indexing, normalisation, pointwise, reduction, shape, spatial

__all__ = ["contraction", "detection", "indexing", "normalisation", "pointwise", "reduction", "shape", "spatial"]
