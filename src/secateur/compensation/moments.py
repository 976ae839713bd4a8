"""Second moments of what a layer reads and should give, gathered batch by batch, and the weights that fit them best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from secateur.errors import GroupError
from secateur.tensors import wide_dtype

_DAMPINGS = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1)
DAMPING = 1e-3
"""Of the mean diagonal: where there is nothing to choose a damping by."""


@dataclass(frozen=True)
class Moments:
    """Sums over positions: n, xx = sum x x^T, yx = sum y x^T, x, y and yy = sum y^2, for each group of a convolution.

    Shapes (g, k, k), (g, o, k), (g, k), (g, o), (g, o), all float64.
    """

    n: int
    xx: Tensor
    yx: Tensor
    x: Tensor
    y: Tensor
    yy: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor) -> Self:
        """The moments of x (n, g, k) and y (n, g, o): products in the dtype of x, at least float32, sums in float64."""
        dtype = wide_dtype(x.dtype)
        rows, outs = x.movedim(0, 1).to(dtype), y.movedim(0, 1).to(dtype)
        return cls(
            len(x),
            (rows.mT @ rows).double(),
            (outs.mT @ rows).double(),
            rows.double().sum(1),
            outs.double().sum(1),
            outs.double().square().sum(1),
        )

    @classmethod
    def sum(cls, parts: Sequence[Self]) -> Self:
        """The moments of all parts together."""
        return cls(*(sum(getattr(p, f.name) for p in parts[1:]) + getattr(parts[0], f.name) for f in fields(cls)))

    def centred(self) -> Self:
        """The moments about the means, which a shift of the outputs takes care of."""
        n = self.n
        return type(self)(
            n,
            self.xx - self.x[:, :, None] * self.x[:, None] / n,
            self.yx - self.y[:, :, None] * self.x[:, None] / n,
            self.x,
            self.y,
            self.yy - self.y.square() / n,
        )

    def error(self, weight: Tensor) -> float:
        """sum_n |y - W x|^2, over all groups."""
        return max(0.0, float(self.yy.sum() + ((weight @ self.xx - 2 * self.yx) * weight).sum()))


@dataclass(frozen=True)
class Fit:
    """The best weights (g, o, k) and shifts (g, o), float64, and the relative squared error before and after."""

    weight: Tensor
    shift: Tensor
    before: float
    after: float


def fit(folds: Sequence[Moments], weight: Tensor, *, has_shift: bool) -> Fit:
    """The weights and shifts that bring W x + b nearest to y.

    W = W0 + (Y - W0 X)(X + lambda mean(diag X) I)^-1 with X = xx, Y = yx: ridge regression towards the weights at hand.
    lambda is the one of 1e-6 … 0.1 that predicts each fold best from the others.

    Args:
        folds: moments of parts of the data; of one fold, lambda = 1e-3.
        weight: W0, (g, o, k) float64.
        has_shift: True fits b too; else it is 0.
    Raises:
        GroupError: the moments hold NaN or Inf.

    >>> x = torch.tensor([[[1.0]], [[2.0]], [[3.0]]], dtype=torch.float64)
    >>> found = fit([Moments.of(x, 2 * x + 1)], torch.zeros(1, 1, 1, dtype=torch.float64), has_shift=True)
    >>> round(float(found.weight), 2), round(float(found.shift), 2)
    (2.0, 1.0)
    """
    whole = Moments.sum(folds)
    if not (torch.isfinite(whole.xx).all() and torch.isfinite(whole.yx).all()):
        raise GroupError("The activations hold NaN or Inf. Check the calibration data and the dense model's outputs.")
    parts = [f.centred() for f in folds] if has_shift else list(folds)
    total = whole.centred() if has_shift else whole
    solved = _ridge(total, weight, _best_damping(parts, weight))
    shift = (whole.y - (solved @ whole.x[:, :, None])[:, :, 0]) / whole.n if has_shift else torch.zeros_like(whole.y)
    energy = max(float(total.yy.sum()), torch.finfo(torch.float64).tiny)
    return Fit(solved, shift, total.error(weight) / energy, total.error(solved) / energy)


def damped(gram: Tensor, damping: float) -> Tensor:
    """Add a fraction of the mean diagonal to the diagonal; features that are always zero get it too."""
    mean = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, 1)
    return gram + torch.diag_embed((damping * mean)[..., None].expand(gram.shape[:-1]))


def _best_damping(parts: Sequence[Moments], weight: Tensor) -> float:
    if len(parts) < 2:
        return DAMPING
    rests = [Moments.sum([*parts[:i], *parts[i + 1 :]]) for i in range(len(parts))]

    def loss(damping: float) -> float:
        return sum(part.error(_ridge(rest, weight, damping)) for part, rest in zip(parts, rests, strict=True))

    return min(_DAMPINGS, key=loss)


def _ridge(m: Moments, start: Tensor, damping: float) -> Tensor:
    change: Tensor = torch.linalg.solve(damped(m.xx, damping), (m.yx - start @ m.xx).mT).mT
    return start + change
