"""LAMP: how much of what would be left is this unit, if all smaller ones went first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, LEARNED, Context, Criterion
from secateur.criteria.magnitude import magnitude_scores
from secateur.criteria.options import check_roles, slices_of

if TYPE_CHECKING:
    from secateur.dims.groups import Group


def lamp_scores(slices: Sequence[Tensor]) -> Tensor:
    """Score units by their share of the larger ones: score[c] = n[c]^2 / sum over d with n[d] >= n[c] of n[d]^2.

    n[c] is the Euclidean norm of all weights of unit c. The largest unit of a group scores 1 if no other equals it.

    Args:
        slices: the group's tensors, each (size, k), any dtype; at least one.
    Returns:
        (size,) float32 in [0, 1], same device, no grad. Larger = keep.

    >>> lamp_scores([torch.tensor([[1.0], [2.0], [3.0]])])
    tensor([0.0714, 0.3077, 1.0000])
    """
    squares = magnitude_scores(slices, p=2).double().square()
    ascending = squares.sort().values
    at_least = ascending.flip(0).cumsum(0).flip(0)[torch.searchsorted(ascending, squares)]
    return torch.where(squares > 0, squares / at_least, 0.0).float()


@CRITERIA.register("lamp")
@dataclass(frozen=True, kw_only=True)
class Lamp(Criterion):
    """Layer-adaptive magnitude: score[c] = n[c]^2 / sum of n[d]^2 over the units d that are no smaller, n = their norm.

    Within a group it ranks as `L2` does; between groups it keeps a threshold from emptying any of them.
    Source: Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021, section 3.
    Differs: the paper scores single weights of a layer; this scores units by the norm of all their learned weights.
    Equal norms get equal scores. Not normalized: the scores are shares already.

    >>> Lamp().roles == LEARNED
    True
    """

    name: ClassVar[str] = "lamp"
    roles: tuple[str, ...] = LEARNED

    def __post_init__(self) -> None:
        check_roles(self.roles)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the share per unit; GroupError if the group has no member of `roles`."""
        return lamp_scores(slices_of(group, context, self.roles))
