"""Rules of operators, one file per family. Importing this package registers them."""

from secateur.dims.rules import contraction, indexing, normalisation, pointwise, reduction, shape, spatial

__all__ = ["contraction", "indexing", "normalisation", "pointwise", "reduction", "shape", "spatial"]
