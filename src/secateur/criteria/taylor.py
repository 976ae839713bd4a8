"""First-order Taylor: how much the loss would change, to first order, if a unit's weights became zero."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, LEARNED, Context, Criterion
from secateur.criteria.options import NORMALIZERS, Normalize, check_choice, check_roles, normalized
from secateur.errors import GroupError

if TYPE_CHECKING:
    from secateur.dims.groups import Group

Reduce = Literal["sum_then_abs", "abs_then_sum", "square_then_sum"]

# (size, k) products of one member -> (size,)
REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum_then_abs": lambda products: products.sum(1).abs(),
    "abs_then_sum": lambda products: products.abs().sum(1),
    "square_then_sum": lambda products: products.square().sum(1),
}


def taylor_scores(pairs: Sequence[tuple[Tensor, Tensor]], reduce: Reduce) -> Tensor:
    """Score units by gradient times weight, with e_m[c, k] = g_m[c, k] * w_m[c, k] in member m.

    sum_then_abs:    score[c] = sum over m of |sum over k of e_m[c, k]|
    abs_then_sum:    score[c] = sum over m, k of |e_m[c, k]|
    square_then_sum: score[c] = sum over m, k of e_m[c, k]^2

    Args:
        pairs: (weights, gradients) per member, both (size, k), any float dtype; at least one pair.
    Returns:
        (size,) float32, same device, no grad, in units of the loss (squared for square_then_sum). Larger = keep.

    >>> w, g = torch.tensor([[1.0, 2.0], [3.0, 1.0]]), torch.tensor([[1.0, -1.0], [0.5, 1.0]])
    >>> taylor_scores([(w, g)], "sum_then_abs")
    tensor([1.0000, 2.5000])
    >>> taylor_scores([(w, g)], "abs_then_sum")
    tensor([3.0000, 2.5000])
    """
    return torch.stack([REDUCTIONS[reduce](w.detach().float() * g.detach().float()) for w, g in pairs]).sum(0)


@CRITERIA.register("taylor")
@dataclass(frozen=True, kw_only=True)
class Taylor(Criterion):
    """Gradient times weight, |g * w|, summed as `reduce` says (see `taylor_scores`). Needs labelled data.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equations 7 to 9.
    Differs: the paper squares the sum per mini-batch and averages the squares; this takes absolute values of products
    with the gradient averaged over all data. The absolute value ranks alike within a member and lets members add up in
    units of the loss. The paper scores filters or norm gates; this sums over all learned members of the group. Not
    normalized by default: the loss is one scale for all groups.

    >>> Taylor().reduce
    'sum_then_abs'
    """

    name: ClassVar[str] = "taylor"
    needs: ClassVar[frozenset[str]] = frozenset({"gradients"})
    reduce: Reduce = "sum_then_abs"
    roles: tuple[str, ...] = LEARNED
    normalize: Normalize = "none"

    def __post_init__(self) -> None:
        check_choice("reduce", self.reduce, REDUCTIONS)
        check_roles(self.roles)
        check_choice("normalize", self.normalize, NORMALIZERS)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the first-order change of the loss per unit; GroupError if no member of `roles` has a gradient."""
        pairs = context.gradient_pairs(group, self.roles)
        if not pairs:
            raise GroupError(f"Group '{group.name}' has no member of roles {', '.join(self.roles)} with a gradient.")
        return normalized(taylor_scores(pairs, self.reduce), self.normalize)
