"""Wanda: a weight counts as much as what it is multiplied with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.magnitude import magnitude_scores
from secateur.criteria.options import NORMALIZERS, Normalize, check_choice, normalized, slices_of

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("wanda")
@dataclass(frozen=True, kw_only=True)
class Wanda(Criterion):
    """Weights times activations: score[c] = sum over the weights w that read c of |w| * rms(x[c]), over the mean.

    Needs data, without labels.
    Source: Sun et al., "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, equation 1.
    Differs: the paper scores single weights, |w| * |x|_2, and compares them within a row; this adds up those of a
    unit. x[c] is one number per unit: of a head, over all its features; where several layers read a unit, over
    the inputs of all. The group's mean is divided out.

    >>> Wanda().normalize
    'mean'
    """

    name: ClassVar[str] = "wanda"
    needs: ClassVar[frozenset[str]] = frozenset({"activity"})
    normalize: Normalize = "mean"

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMALIZERS)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the product per unit, normalized; GroupError if no weight reads the group, or nothing does on data."""
        weights = magnitude_scores(slices_of(group, context, ("reader",)), p=1)
        return normalized(weights * context.measured("activity", group).rms.to(weights.device), self.normalize)
