"""Sensitivity: what the loss really becomes when one group alone gets narrower, group by group and level by level.

Nothing is cut: the model runs on its own code with the dropped units out of every sum, and norms over the kept ones, so
a level costs one forward per batch. The result is plain data. It makes error curves for allocation, is kept in a file
by the content that it depends on, and has a plot.
"""

from secateur.sensitivity.found import Scanned, Sensitivity, read_sensitivity, write_sensitivity
from secateur.sensitivity.plot import SensitivityPoints, draw_sensitivity, sensitivity_points
from secateur.sensitivity.scan import scan_sensitivity

__all__ = [
    "Scanned",
    "Sensitivity",
    "SensitivityPoints",
    "draw_sensitivity",
    "read_sensitivity",
    "scan_sensitivity",
    "sensitivity_points",
    "write_sensitivity",
]
