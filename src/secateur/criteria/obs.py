"""Optimal brain surgeon on gates: the rise of the loss without a unit, when the others of its group make up for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.dims.groups import Group


def surgeon_scores(gates: Tensor, damping: float) -> Tensor:
    """Score units by what no other unit can make up for: score[c] = 1/2 * (1 / [(F + d I)^-1]_cc - d).

    F = gates' gates / n_samples; d = damping * mean of F's diagonal. 1 / [F^-1]_cc is what is left of F_cc after
    regressing gamma[:, c] on those of all other units, which is what damping makes a ridge regression.

    Args:
        gates: (n_samples, size) derivatives of each sample's loss by a factor on each unit.
    Returns:
        (size,) float32, at most half of F_cc, in units of the loss. Larger = keep.

    >>> surgeon_scores(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0], [0.0, 0.0, 1.0]]), damping=1e-6)
    tensor([5.0000e-07, 5.0000e-07, 5.0000e-01])
    """
    scaled = gates.double() / len(gates) ** 0.5
    ridge = damping * float(scaled.square().sum(0).mean())
    if ridge == 0:
        return torch.zeros(gates.shape[1], dtype=torch.float32)
    _, values, axes = torch.linalg.svd(scaled, full_matrices=False)
    # Leverage q: [(F + d I)^-1]_cc = (1 - q) / d, whether there are more samples than units or fewer.
    leverage = (axes.square() * (values.square() / (values.square() + ridge))[:, None]).sum(0).clamp(max=1 - 1e-12)
    scores = torch.where(scaled.any(0), ridge * leverage / (1 - leverage) / 2, 0.0)  # exactly 0 for a dead unit
    return scores.float()


@CRITERIA.register("obs")
@dataclass(frozen=True, kw_only=True)
class Obs(Criterion):
    """Curvature within the group: score[c] = 1/2 * 1 / [F^-1]_cc, with the empirical Fisher information F of all gates.

    F[c, d] = mean over samples n of gamma[n, c] * gamma[n, d] (see `secateur.criteria.gates`). Where `Fisher` says what
    the loss rises by if a unit goes and all else stays, this lets the scale of the group's other units change as is
    best. F is damped, and the damping subtracted again (`surgeon_scores`). Needs labelled data, and as many samples as
    units to tell all units apart.

    Args:
        damping: over the mean of F's diagonal.
    Source: Hassibi and Stork, "Second order derivatives for network pruning: Optimal Brain Surgeon", NIPS 1992,
    equation 5; the empirical Fisher information for the Hessian as in Singh and Alistarh, "WoodFisher", NeurIPS 2020.
    Differs: both score single weights; this scores gates on units, whose value is 1, with one block per group.

    >>> Obs().damping
    0.01
    """

    name: ClassVar[str] = "obs"
    needs: ClassVar[frozenset[str]] = frozenset({"gates"})
    damping: float = 0.01

    def __post_init__(self) -> None:
        if isinstance(self.damping, bool) or not self.damping > 0:
            raise ConfigError(f"damping={self.damping} is not positive. 0.01 is common; more for fewer samples.")

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the rise of the loss per unit; GroupError if nothing reads the group."""
        return surgeon_scores(context.measured("gates", group), self.damping)
