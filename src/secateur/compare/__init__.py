"""Comparing techniques: models by prunings, quantizations and budgets, cross-validated."""

from __future__ import annotations

from secateur.compare.cells import Cell, Grid, Start
from secateur.compare.clusters import KLDASubject
from secateur.compare.images import CifarSubject, DigitsCNNSubject, DigitsMLPSubject
from secateur.compare.rows import Row
from secateur.compare.run import Compared, Effort, compare
from secateur.compare.subjects import SUBJECTS, TextCNNSubject
from secateur.compare.techniques import PRUNINGS, QUANTIZATIONS

__all__ = [
    "PRUNINGS",
    "QUANTIZATIONS",
    "SUBJECTS",
    "Cell",
    "CifarSubject",
    "Compared",
    "DigitsCNNSubject",
    "DigitsMLPSubject",
    "Effort",
    "Grid",
    "KLDASubject",
    "Row",
    "Start",
    "TextCNNSubject",
    "compare",
]
