"""Fisher information of units: how much the loss would rise, to second order, without a unit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion

if TYPE_CHECKING:
    from secateur.dims.groups import Group


def fisher_scores(gates: Tensor) -> Tensor:
    """Score units by half their Fisher information: score[c] = 1/2 * mean over samples n of gamma[n, c]^2.

    Args:
        gates: (n_samples, size) derivatives of each sample's loss by a factor on each unit.
    Returns:
        (size,) float32, in units of the loss. Larger = keep.

    >>> import torch
    >>> fisher_scores(torch.tensor([[1.0, 0.0], [-3.0, 2.0]]))
    tensor([2.5000, 1.0000])
    """
    return gates.float().square().mean(0) / 2


@CRITERIA.register("fisher")
@dataclass(frozen=True, kw_only=True)
class Fisher(Criterion):
    """Empirical Fisher information of a gate on each unit: score[c] = 1/2 * mean over samples n of gamma[n, c]^2.

    gamma[n, c] = sum over positions of a[n, c] * dL_n / da[n, c] (see `secateur.criteria.gates`). With the Fisher
    information for the Hessian, and no first-order term at a minimum, it is what the loss rises by if the gate closes.
    As gamma is the sum of weight times gradient over the weights that read c, it holds all covariances of these
    weights, not their diagonal alone. Needs labelled data.
    Source: Theis et al., "Faster gaze prediction with dense networks and Fisher pruning", 2018, section 2. Up to the
    factor it is the squared first-order score of Molchanov et al., "Importance Estimation for Neural Network Pruning",
    CVPR 2019, section 3, taken per sample.

    >>> Fisher().needs
    frozenset({'gates'})
    """

    name: ClassVar[str] = "fisher"
    needs: ClassVar[frozenset[str]] = frozenset({"gates"})

    def score(self, group: Group, context: Context) -> Tensor:
        """Return half the information per unit; GroupError if nothing reads the group."""
        return fisher_scores(context.measured("gates", group))
