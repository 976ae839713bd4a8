"""Error curves: what a group loses as it gets narrower. Scores, measured losses, elimination paths give one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import GroupError


@dataclass(frozen=True, eq=False)
class ErrorCurve:
    """The error of one group at each width, and which units each width keeps.

    Args:
        errors: (size + 1,) float64; errors[k] is the error with k units kept, on one scale for all groups.
            errors[size] = 0. It need not fall from one k to the next: a measured loss is noisy.
        order: (size,) int64, a permutation of the units; a width of k keeps order[:k].
    Raises:
        GroupError: shapes that do not fit, NaN or Inf, a dense error other than 0, or an order that is no permutation.

    >>> ErrorCurve(torch.tensor([9.0, 4.0, 0.0]), torch.tensor([1, 0])).gains.tolist()
    [5.0, 4.0]
    """

    errors: Tensor
    order: Tensor

    def __post_init__(self) -> None:
        for name, dtype in (("errors", torch.float64), ("order", torch.int64)):
            object.__setattr__(self, name, getattr(self, name).detach().to("cpu", dtype))
        size = len(self.order)
        if self.errors.shape != (size + 1,) or self.order.shape != (size,) or size == 0:
            raise GroupError(
                f"errors {tuple(self.errors.shape)} and order {tuple(self.order.shape)} are no curve. "
                "A group of n units has n + 1 errors, of 0 to n units kept."
            )
        if not torch.isfinite(self.errors).all() or self.errors[-1] != 0:
            raise GroupError(
                f"errors {self.errors.tolist()[:4]}… end with {self.errors[-1]:g}. "
                "They must be finite, and 0 where all units are kept: subtract the dense model's loss."
            )
        if not torch.equal(self.order.sort().values, torch.arange(size)):
            raise GroupError(f"order is no permutation of 0 to {size - 1}. Name every unit once, the best first.")

    @property
    def gains(self) -> Tensor:
        """Return (size,) float64: gains[k] = errors[k] - errors[k + 1], what the unit order[k] saves."""
        return -self.errors.diff()


def curve_of(scores: Tensor) -> ErrorCurve:
    """Return the curve of scores that add up: errors[k] = sum of all scores but the k highest.

    Args:
        scores: (size,), larger = keep. Of equal scores the lower index is kept longer.

    >>> curve_of(torch.tensor([1.0, 4.0, 2.0])).errors.tolist()
    [7.0, 3.0, 1.0, 0.0]
    """
    gains, order = ranked(scores)
    errors = torch.cat([gains, gains.new_zeros(1)])
    return ErrorCurve(errors.flip(0).cumsum(0).flip(0), order)


def ranked(scores: Tensor | ErrorCurve) -> tuple[Tensor, Tensor]:
    """Return (gains, order): what the k-th best unit saves, (size,) float64, and which unit it is, (size,) int64.

    >>> ranked(torch.tensor([1.0, 4.0, 2.0]))[0].tolist()
    [4.0, 2.0, 1.0]
    """
    if isinstance(scores, ErrorCurve):
        return scores.gains, scores.order
    values, order = torch.sort(scores.detach().cpu().double(), descending=True, stable=True)
    return values, order
