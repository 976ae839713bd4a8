"""Geometric median: a unit in the middle of the others says what they say already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.options import NORMALIZERS, Normalize, check_choice, check_roles, normalized, slices_of

if TYPE_CHECKING:
    from secateur.dims.groups import Group


def distance_scores(slices: Sequence[Tensor]) -> Tensor:
    """Score units by their distance to all others: score[c] = sum over d of |v[c] - v[d]|, v = all weights of a unit.

    Args:
        slices: the group's tensors, each (size, k), real, any dtype; at least one.
    Returns:
        (size,) float32, same device, no grad, in units of the weights. Larger = keep.

    >>> distance_scores([torch.tensor([[0.0], [1.0], [5.0]])])
    tensor([6., 5., 9.])
    """
    vectors = torch.cat([rows.detach().float() for rows in slices], dim=1)
    # Not by matrix product: it loses the distances of near neighbours to cancellation.
    return torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


@CRITERIA.register("fpgm")
@dataclass(frozen=True, kw_only=True)
class GeometricMedian(Criterion):
    """Distance to all other units of the group: score[c] = sum over d of |w[c] - w[d]|, over the group's mean.

    The unit of least score is the one nearest to the geometric median of all.
    Source: He et al., "Filter Pruning via Geometric Median for Deep Convolutional Neural Networks Acceleration",
    CVPR 2019, section 3.
    Differs: the paper compares filters, which is the default here; `roles` may add what reads a unit, its bias and
    norms. The group's mean is divided out, which lets one threshold rank units of several groups; the paper prunes each
    layer by itself. A unit of zeros may lie in the middle or not: it need not score lowest. Takes size^2 distances.

    >>> GeometricMedian().roles
    ('producer',)
    """

    name: ClassVar[str] = "fpgm"
    roles: tuple[str, ...] = ("producer",)
    normalize: Normalize = "mean"

    def __post_init__(self) -> None:
        check_roles(self.roles)
        check_choice("normalize", self.normalize, NORMALIZERS)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the sum of distances per unit, normalized; GroupError if the group has no member of `roles`."""
        return normalized(distance_scores(slices_of(group, context, self.roles)), self.normalize)
