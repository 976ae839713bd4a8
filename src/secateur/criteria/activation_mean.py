"""Activation mean: a unit that is hardly ever active says little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.options import NORMALIZERS, Normalize, check_choice, normalized

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("activation_mean")
@dataclass(frozen=True, kw_only=True)
class ActivationMean(Criterion):
    """Mean size of what is read of a unit: score[c] = mean over samples and positions of |x[c]|, over the group's mean.

    Needs data, without labels.
    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017,
    section 2.2, "activation".
    Differs: the paper takes the mean of x after a ReLU, which is the same there. Where several layers read a unit,
    their inputs are pooled. The group's mean is divided out, which puts groups on one scale.

    >>> ActivationMean().needs
    frozenset({'activity'})
    """

    name: ClassVar[str] = "activation_mean"
    needs: ClassVar[frozenset[str]] = frozenset({"activity"})
    normalize: Normalize = "mean"

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMALIZERS)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the mean size per unit, normalized; GroupError if nothing reads the group."""
        return normalized(context.measured("activity", group).mean_abs, self.normalize)
