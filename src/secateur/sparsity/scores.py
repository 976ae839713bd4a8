"""Scores of single weights, and how a weight is made sparse by them. Larger = keep."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.coding.sweep import CodeColumn, sweep
from secateur.compensation.moments import damped
from secateur.errors import ConfigError
from secateur.layers import Rows, gram, squares
from secateur.registry import Registry
from secateur.sparsity.choice import Choice


@dataclass(frozen=True, kw_only=True)
class Score(ABC):
    """A rule that scores the weights of one layer, and makes it sparse.

    Attributes:
        name: in `SCORES`.
        needs_gradient: it needs the gradient of the loss by the weight, and so labels.
        scope: that its paper uses; see `secateur.sparsity.scopes`.
    """

    name: ClassVar[str]
    needs_gradient: ClassVar[bool] = False
    scope: ClassVar[str] = "layer"

    @property
    def of_inputs(self) -> Rows | None:
        """What it needs of a layer's inputs, as a sum over rows (n, groups, in)."""
        return None

    @abstractmethod
    def score(self, weight: Tensor, seen: Tensor | None) -> Tensor:
        """Score each weight.

        Args:
            weight: (groups, out, in).
            seen: what the score needs: the sum over the inputs, or the gradient (groups, out, in).
        Returns:
            (groups, out, in), float, not negative.
        """

    def sparsify(self, weight: Tensor, seen: Tensor | None, choice: Choice) -> tuple[Tensor, Tensor]:
        """Return the new weight and which of it stays, both (groups, out, in). Here the weight is as it was."""
        return weight, choice(self.score(weight, seen))


SCORES: Registry[str, type[Score]] = Registry("score of weights")


@SCORES.register("magnitude")
@dataclass(frozen=True, kw_only=True)
class Magnitude(Score):
    """score[o, k] = |w[o, k]|

    Source: Han et al., "Learning both weights and connections for efficient neural networks", NIPS 2015, section 3.
    """

    name: ClassVar[str] = "magnitude"

    def score(self, weight: Tensor, seen: Tensor | None) -> Tensor:
        """|w|"""
        return weight.abs()


@SCORES.register("taylor")
@dataclass(frozen=True, kw_only=True)
class Taylor(Score):
    """score[o, k] = |w[o, k] * dL/dw[o, k]|: what setting it to zero changes in the loss, to first order.

    Source: Molchanov et al., "Importance estimation for neural network pruning", CVPR 2019, equation 8.
    Differs: single weights rather than filters, and the gradient is averaged over all data first.
    """

    name: ClassVar[str] = "taylor"
    needs_gradient: ClassVar[bool] = True

    def score(self, weight: Tensor, seen: Tensor | None) -> Tensor:
        """|w g|"""
        assert seen is not None
        return (weight * seen).abs()


@SCORES.register("wanda")
@dataclass(frozen=True, kw_only=True)
class Wanda(Score):
    """score[o, k] = |w[o, k]| * |x[k]|, with |x[k]| the Euclidean norm of input k over the calibration data.

    Source: Sun et al., "A simple and effective pruning approach for large language models", ICLR 2024, section 3.
    Differs: convolutions too, whose inputs are the columns of their windows.
    """

    name: ClassVar[str] = "wanda"
    scope: ClassVar[str] = "output"

    @property
    def of_inputs(self) -> Rows:
        """|x|^2"""
        return squares

    def score(self, weight: Tensor, seen: Tensor | None) -> Tensor:
        """|w| |x|"""
        assert seen is not None
        return weight.abs() * seen.sqrt()[:, None]


@SCORES.register("sparsegpt")
@dataclass(frozen=True, kw_only=True)
class SparseGPT(Score):
    """score[o, k] = w[o, k]^2 / [H^-1]_kk, H = sum_n x x^T: what setting it to zero costs, if the others adapt.

    Going through the columns from left to right, those that are not reached yet adapt to what was set to zero, and the
    score counts those alone (see `secateur.coding.sweep`). It chooses among `pattern.columns` columns at once. Weights
    of inputs that are always zero go first.
    Source: Frantar and Alistarh, "SparseGPT", ICML 2023, section 3 and algorithm 1.
    Differs: convolutions too; the number of weights that stay is exact.
    """

    name: ClassVar[str] = "sparsegpt"
    damping: float = 0.01  # fraction of the mean diagonal of H that is added to its diagonal

    @property
    def of_inputs(self) -> Rows:
        """H"""
        return gram

    def __post_init__(self) -> None:
        if not self.damping >= 0:
            raise ConfigError(f"damping={self.damping} is negative. It is a fraction of the mean diagonal of H.")

    def score(self, weight: Tensor, seen: Tensor | None) -> Tensor:
        """w^2 / [H^-1]_kk of all weights, before any is gone."""
        assert seen is not None
        costs: Tensor = torch.linalg.inv(damped(seen, self.damping)).diagonal(dim1=-2, dim2=-1)
        return _where_read(weight, seen).square() / costs[:, None]

    def sparsify(self, weight: Tensor, seen: Tensor | None, choice: Choice) -> tuple[Tensor, Tensor]:
        """Set columns to zero in order, and move those that follow."""
        assert seen is not None
        stays = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)

        def choose(block: Tensor, roots: Tensor, start: int) -> CodeColumn:
            part = stays[..., start : start + block.shape[-1]]
            part.copy_(choice.part((block / roots).square(), start))
            return lambda column, i: torch.where(part[..., i], column, 0)

        coded = sweep(_where_read(weight, seen), seen, choose, block=choice.pattern.columns, damping=self.damping)
        return coded, stays


def _where_read(weight: Tensor, hessian: Tensor) -> Tensor:
    """The weight, 0 where its input is always zero."""
    return torch.where(hessian.diagonal(dim1=-2, dim2=-1)[:, None] > 0, weight, 0)
