"""Comparing techniques: models by prunings, quantizations and budgets, cross-validated."""

from __future__ import annotations

from secateur.compare.cells import Cell, Grid, Start
from secateur.compare.clusters import KLDASubject
from secateur.compare.rows import Row
from secateur.compare.run import Compared, Effort, compare
from secateur.compare.subjects import SUBJECTS
from secateur.compare.techniques import PRUNINGS, QUANTIZATIONS

__all__ = [
    "PRUNINGS",
    "QUANTIZATIONS",
    "SUBJECTS",
    "Cell",
    "Compared",
    "Effort",
    "Grid",
    "KLDASubject",
    "Row",
    "Start",
    "compare",
]
