"""Redundancy of activations: of two units that do the same on data, one can go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.redundancy import elimination_scores

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("activation_cosine")
@dataclass(frozen=True, kw_only=True)
class ActivationCosine(Criterion):
    """Redundancy of activations: score[c] = 1 - the largest cosine of c with a unit that is still there when c goes.

    cos(c, d) is that of all values x[c] and x[d] over samples and positions; see `elimination_scores`. Needs data,
    without labels, and size^2 memory per group.
    Source: the measure of Ayinde et al., "Redundant feature pruning for accelerated inference in deep neural networks",
    Neural Networks 118, 2019, section 3, on activations in place of weights.
    Differs: as for `Cosine`.

    >>> ActivationCosine()
    ActivationCosine()
    """

    name: ClassVar[str] = "activation_cosine"
    needs: ClassVar[frozenset[str]] = frozenset({"products"})

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the elimination's score per unit; GroupError if nothing reads the group."""
        return elimination_scores(context.measured("products", group))
