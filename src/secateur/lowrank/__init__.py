"""Low rank: layers as chains of thinner ones, and back."""

from __future__ import annotations

from secateur.lowrank.edit import Factors, merge
from secateur.lowrank.forms import FORMS
from secateur.lowrank.layers import Factored

__all__ = ["FORMS", "Factored", "Factors", "merge"]
