"""Optimal brain damage: curvature of the loss along each weight by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, LEARNED, Context, Criterion
from secateur.criteria.options import check_roles
from secateur.errors import GroupError

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("obd")
@dataclass(frozen=True, kw_only=True)
class Obd(Criterion):
    """Diagonal curvature: score[c] = 1/2 * sum over members and their elements k of h[c, k] * w[c, k]^2.

    h is the diagonal of the empirical Fisher information, the mean over samples of (dL_n / dw)^2: the estimator of the
    Hessian's diagonal that is used here. It is never negative, and takes one backward per sample
    (`collect_squared_gradients`). Needs labelled data.
    Source: LeCun et al., "Optimal Brain Damage", NIPS 1989, section 2.
    Differs: the paper propagates second derivatives with the Gauss-Newton approximation, and scores single weights;
    this adds up those of a unit, over all its learned members.

    >>> Obd().needs
    frozenset({'squared_gradients'})
    """

    name: ClassVar[str] = "obd"
    needs: ClassVar[frozenset[str]] = frozenset({"squared_gradients"})
    roles: tuple[str, ...] = LEARNED

    def __post_init__(self) -> None:
        check_roles(self.roles)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return half the curvature per unit; GroupError if no member of `roles` has a gradient."""
        pairs = context.gradient_pairs(group, self.roles, "squared_gradients")
        if not pairs:
            raise GroupError(f"Group '{group.name}' has no member of roles {', '.join(self.roles)} with a gradient.")
        return torch.stack([(h.float() * w.float().square()).sum(1) for w, h in pairs]).sum(0) / 2
