"""Redundancy: of two units that are alike, one can go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.options import check_roles, slices_of

if TYPE_CHECKING:
    from secateur.dims.groups import Group


def elimination_scores(gram: Tensor) -> Tensor:
    """Score units by what is left of their likeness when they go: drop one of the most alike pair, again and again.

    score[c] = 1 - max over units d still there of cos(c, d), when c is dropped; cos(c, d) = G[c, d] / (n[c] n[d]) with
    n[c] = sqrt(G[c, c]). Of a pair, the unit of smaller norm goes, of equal norms the higher index. A unit of norm 0 is
    like any other, and goes first. The last one scores 2. Scores never fall from one dropped unit to the next, so a
    cut at any width leaves the units that the elimination leaves.

    Args:
        gram: (size, size) inner products of the units, any float dtype.
    Returns:
        (size,) float32 in [0, 2], same device. Larger = keep.

    >>> units = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    >>> elimination_scores(units @ units.T)
    tensor([0., 1., 2.])
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    likeness = (gram / norms[:, None] / norms[None, :]).clamp(-1, 1)
    likeness[norms == 0, :] = likeness[:, norms == 0] = 1.0
    likeness.fill_diagonal_(-torch.inf)
    nearest = likeness.max(1)
    most, which = nearest.values, nearest.indices  # per unit, its most alike unit among those still there
    scores = torch.full_like(norms, 2.0, dtype=torch.float32)
    for _ in range(len(gram) - 1):
        one = int(most.argmax())
        other = int(which[one])
        n_one, n_other = float(norms[one]), float(norms[other])
        gone = one if n_one < n_other or (n_one == n_other and one > other) else other
        scores[gone] = 1 - most[one]
        likeness[gone, :] = likeness[:, gone] = -torch.inf
        most[gone] = -torch.inf
        for c in ((which == gone) & (most > -torch.inf)).nonzero().flatten().tolist():
            most[c], which[c] = likeness[c].max(0)
    return scores


@CRITERIA.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Criterion):
    """Redundancy of weights: score[c] = 1 - the largest cosine of c with a unit that is still there when c goes.

    See `elimination_scores`. The cosine is that of all weights of `roles`, laid end to end.
    Source: Ayinde et al., "Redundant feature pruning for accelerated inference in deep neural networks", Neural
    Networks 118, 2019, section 3.
    Differs: the paper clusters filters whose cosine exceeds a threshold and keeps one at random of each cluster; this
    drops one unit at a time, the smaller of the most alike pair, which gives every unit a score. The sign
    counts, as there: a unit and its negative are not alike. Not normalized: cosines are on one scale. Takes size^2
    memory and about size^2 log(size) time.

    >>> Cosine()
    Cosine(roles=('producer',))
    """

    name: ClassVar[str] = "cosine"
    roles: tuple[str, ...] = ("producer",)

    def __post_init__(self) -> None:
        check_roles(self.roles)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the elimination's score per unit; GroupError if the group has no member of `roles`."""
        vectors = torch.cat([rows.detach().float() for rows in slices_of(group, context, self.roles)], dim=1)
        return elimination_scores(vectors @ vectors.T)
