"""Second-order Taylor: first-order change of the loss and curvature together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.fisher import fisher_scores

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("taylor_second")
@dataclass(frozen=True, kw_only=True)
class TaylorSecond(Criterion):
    """Size of the change of the loss to second order: score[c] = |-mean of gamma[n, c] + 1/2 mean of gamma[n, c]^2|.

    gamma[n, c] is the derivative of sample n's loss by a gate on unit c (see `secateur.criteria.gates`); closing the
    gate moves it by -1. The mean of gamma^2, the empirical Fisher information, stands for the second derivative.
    Needs labelled data.
    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, section 3.
    Differs: the paper takes the Hessian, and squares the change; the order is the same.

    >>> TaylorSecond()
    TaylorSecond()
    """

    name: ClassVar[str] = "taylor_second"
    needs: ClassVar[frozenset[str]] = frozenset({"gates"})

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the size of the change per unit; GroupError if nothing reads the group."""
        gates: Tensor = context.measured("gates", group).float()
        return (fisher_scores(gates) - gates.mean(0)).abs()
