"""Structured optimal brain surgeon as a criterion: what the network loses once the weights that are left make up."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn

from secateur.criteria.base import CRITERIA, CurveCriterion, Curves
from secateur.errors import ConfigError
from secateur.tensors import Inputs


@CRITERIA.register("elimination")
@dataclass(frozen=True, kw_only=True)
class Elimination(CurveCriterion):
    """Units go in the order in which the weights that read them can do without; errors are of the outputs.

    Goes with `compensate_`, which solves for those weights, and with `Lagrangian`, which compares the errors of groups.
    See `secateur.compensation.curves.error_curves` for formula and source.

    Args:
        distance: between the dense network's outputs and others: "kl" for logits along the last axis, "mse" otherwise.
        step: fraction of the units left that are eliminated at once, at least one.
        max_rows: positions per layer, over all batches, that its Gram matrix is taken over.
        levels: fractions of a group at which its error is measured on the network, and between which the elimination
            interpolates; empty leaves the elimination's own errors.
        n_probe: samples that are measured on, at least one batch.
        seed: of the labels that are drawn from the network's own predictions.

    >>> Elimination().distance
    'kl'
    """

    name: ClassVar[str] = "elimination"
    distance: Literal["kl", "mse"] = "kl"
    step: float = 1 / 64
    max_rows: int = 1 << 16
    levels: tuple[float, ...] = (0.2, 0.35, 0.5, 0.65, 0.8)
    n_probe: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distance not in ("kl", "mse"):
            raise ConfigError(f"distance={self.distance!r} is neither 'kl' nor 'mse'.")
        if not 0 < self.step < 1 or self.max_rows < 1 or self.n_probe < 1:
            raise ConfigError(
                f"step={self.step} must be in (0, 1), max_rows={self.max_rows} and n_probe={self.n_probe} positive."
            )
        if not all(0 < level < 1 for level in self.levels) or list(self.levels) != sorted(set(self.levels)):
            raise ConfigError(f"levels={self.levels} must rise strictly within (0, 1).")

    def curves(self, model: nn.Module, batches: Iterable[Inputs]) -> Curves:
        """Return the error of the outputs at each width of every group that only weights read."""
        from secateur.compensation.curves import error_curves

        return error_curves(model, batches, self)
