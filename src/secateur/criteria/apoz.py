"""APoZ: a unit that is zero most of the time says little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("apoz")
@dataclass(frozen=True, kw_only=True)
class Apoz(Criterion):
    """How often a unit is not zero: score[c] = 1 - APoZ[c], the fraction of samples and positions with x[c] != 0.

    Needs data, without labels. It can tell units apart only where something makes zeros, as a ReLU does: after a GELU
    or a norm all score 1.
    Source: Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
    2016, equation 1.
    Differs: where several layers read a unit, their inputs are pooled.

    >>> Apoz()
    Apoz()
    """

    name: ClassVar[str] = "apoz"
    needs: ClassVar[frozenset[str]] = frozenset({"activity"})

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the fraction of values that are not zero per unit; GroupError if nothing reads the group."""
        found: Tensor = context.measured("activity", group).nonzero
        return found
