"""Weight magnitude: units with small weights say little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, LEARNED, Context, Criterion
from secateur.criteria.options import NORMALIZERS, Normalize, check_choice, check_roles, normalized, slices_of

if TYPE_CHECKING:
    from secateur.dims.groups import Group


def magnitude_scores(slices: Sequence[Tensor], p: int) -> Tensor:
    """Score units by the norm of all their weights: score[c] = (sum over t, k of |t[c, k]|^p)^(1/p).

    Args:
        slices: the group's tensors, each (size, k), any dtype; at least one.
        p: 1 or 2.
    Returns:
        (size,) float32, same device, no grad, in units of the weights. Larger = keep.

    >>> magnitude_scores([torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.tensor([[2.0], [-4.0]])], p=2)
    tensor([3., 5.])
    """
    detached = [rows.detach() for rows in slices]
    norms = [torch.linalg.vector_norm(rows if rows.is_complex() else rows.float(), p, dim=1) for rows in detached]
    total: Tensor = torch.linalg.vector_norm(torch.stack(norms), p, dim=0)
    return total


@dataclass(frozen=True, kw_only=True)
class _Magnitude(Criterion):
    p: ClassVar[int]
    roles: tuple[str, ...] = LEARNED  # which members count; running statistics are not weights
    normalize: Normalize = "mean"  # the scale that groups share

    def __post_init__(self) -> None:
        check_roles(self.roles)
        check_choice("normalize", self.normalize, NORMALIZERS)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the norm per unit over members of `roles`, normalized; GroupError if the group has none of them."""
        return normalized(magnitude_scores(slices_of(group, context, self.roles), self.p), self.normalize)


@CRITERIA.register("l1")
@dataclass(frozen=True, kw_only=True)
class L1(_Magnitude):
    """Sum of absolute weights: score[c] = sum over members t and their elements k of |t[c, k]|, over the group's mean.

    Source: Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1.
    Differs: the paper sums one filter and prunes each layer by itself. This sums every learned member of the group
    (producers, readers, biases, norms), and divides by the group's mean score, so that one threshold can rank units of
    groups whose weights differ in number and scale. `roles=("producer",), normalize="none"` is the paper.

    >>> L1(normalize="none")
    L1(roles=('producer', 'reader', 'bias', 'scale', 'shift', 'other'), normalize='none')
    """

    name: ClassVar[str] = "l1"
    p: ClassVar[int] = 1


@CRITERIA.register("l2")
@dataclass(frozen=True, kw_only=True)
class L2(_Magnitude):
    """Euclidean norm: score[c] = sqrt(sum over members t and their elements k of t[c, k]^2), over the group's mean.

    Source: He et al., "Soft Filter Pruning for Accelerating Deep Convolutional Neural Networks", IJCAI 2018,
    section 3.2.
    Differs: as for `L1`: every learned member counts, and the group's mean score is divided out.

    >>> L2().roles
    ('producer', 'reader', 'bias', 'scale', 'shift', 'other')
    """

    name: ClassVar[str] = "l2"
    p: ClassVar[int] = 2
