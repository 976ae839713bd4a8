"""Calibration: which range of values a grid of few levels should cover."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.errors import ConfigError
from secateur.registry import Registry
from secateur.tensors import wide

SMALLEST = 1e-30
"""The scale of values that are all zero; it divides, so it can't be zero."""


@dataclass(frozen=True, eq=False)
class Grid:
    """n_codes levels at equal distances: (lowest + i) * scale for i = 0, …, n_codes - 1, row by row.

    Attributes:
        scale: (n,).
        lowest: (n,), whole numbers in [-(n_codes - 1), 0], so that 0 is a level.
    """

    scale: Tensor
    lowest: Tensor
    n_codes: int

    @classmethod
    def over(cls, low: Tensor, high: Tensor, n_codes: int) -> Grid:
        """The grid from low <= 0 to high >= 0, (n,) each, with its ends moved to the nearest whole levels."""
        scale = ((high - low) / (n_codes - 1)).clamp_min(SMALLEST)
        return cls(scale, (low / scale).round().clamp(1 - n_codes, 0), n_codes)

    def nearest(self, rows: Tensor) -> Tensor:
        """Each value of (n, m) on the grid."""
        lowest = self.lowest[:, None]
        levels = (rows / self.scale[:, None]).round().clamp(lowest, lowest + (self.n_codes - 1))
        return levels * self.scale[:, None]


class Calibration:
    """A rule for ranges. A subclass is a frozen dataclass."""

    name: ClassVar[str]

    def range(self, rows: Tensor, n_codes: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """(low, high), (n,) each, for rows (n, m) of values; low <= 0 <= high, and low = -high where symmetric."""
        raise NotImplementedError


CALIBRATIONS = Registry[str, type[Calibration]]("calibration")


@CALIBRATIONS.register("minmax")
@dataclass(frozen=True, kw_only=True)
class MinMax(Calibration):
    """All values are in range.

    >>> MinMax().range(torch.tensor([[-1.0, 0.5, 3.0]]), 16, symmetric=False)
    (tensor([-1.]), tensor([3.]))
    """

    name: ClassVar[str] = "minmax"

    def range(self, rows: Tensor, n_codes: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The least and the greatest value, and 0."""
        if symmetric:
            high = rows.abs().amax(1)
            return -high, high
        return rows.amin(1).clamp_max(0), rows.amax(1).clamp_min(0)


MINMAX = MinMax()


@CALIBRATIONS.register("percentile")
@dataclass(frozen=True, kw_only=True)
class Percentile(Calibration):
    """All but the most extreme values are in range: `percentile` of |value|, or as many on both sides together.

    Source: Wu et al., "Integer Quantization for Deep Learning Inference", arXiv:2004.09602, 2020, section 3.3.
    """

    name: ClassVar[str] = "percentile"
    percentile: float = 99.9  # of the values

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile={self.percentile} is outside (50, 100].")

    def range(self, rows: Tensor, n_codes: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Between order statistics, linearly."""
        if symmetric:
            high = _percentile(rows.abs(), self.percentile)
            return -high, high
        outside = (100 - self.percentile) / 2
        return _percentile(rows, outside).clamp_max(0), _percentile(rows, 100 - outside).clamp_min(0)


@CALIBRATIONS.register("mse")
@dataclass(frozen=True, kw_only=True)
class LeastSquares(Calibration):
    """The range whose grid has the least squared error, among fractions of that of all values.

    Source: Nagel et al., "A White Paper on Neural Network Quantization", arXiv:2106.08295, 2021, section 3.1.
    """

    name: ClassVar[str] = "mse"
    n_candidates: int = 80  # fractions 1/n, 2/n, …, 1

    def __post_init__(self) -> None:
        _check_candidates(self.n_candidates)

    def range(self, rows: Tensor, n_codes: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Both ends shrink alike; of equal errors the wider range."""
        low, high = MINMAX.range(rows, n_codes, symmetric)

        def error(fraction: float) -> Tensor:
            return (Grid.over(low * fraction, high * fraction, n_codes).nearest(rows) - rows).square().sum(1)

        best = _least(error, self.n_candidates, low)
        return low * best, high * best


@CALIBRATIONS.register("kl")
@dataclass(frozen=True, kw_only=True)
class Divergence(Calibration):
    """The range whose grid changes the distribution least: KL(values in bins || the same by level), by fractions.

    Meant for activations: it asks for thousands of values in a row. Values out of range count in the outermost bins; a
    level's values are spread evenly over those of its bins that hold any.

    Source: Migacz, "8-bit Inference with TensorRT", GPU Technology Conference 2017.
    Differs: works on both signs at once and at any number of levels; fractions are tried rather than every bin.
    """

    name: ClassVar[str] = "kl"
    n_bins: int = 2048  # over the range of all values
    n_candidates: int = 80

    def __post_init__(self) -> None:
        _check_candidates(self.n_candidates)
        if self.n_bins < 2:
            raise ConfigError(f"n_bins={self.n_bins} is less than 2.")

    def range(self, rows: Tensor, n_codes: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Both ends shrink alike; of equal divergences the wider range."""
        low, high = MINMAX.range(rows, n_codes, symmetric)
        counts = _histogram(rows, low, high, self.n_bins)
        centres = low[:, None] + (high - low)[:, None] * (torch.arange(self.n_bins) + 0.5).to(rows) / self.n_bins

        def divergence(fraction: float) -> Tensor:
            return _divergence(counts, centres, Grid.over(low * fraction, high * fraction, n_codes))

        best = _least(divergence, self.n_candidates, low)
        return low * best, high * best


def fit_grid(rows: Tensor, n_codes: int, symmetric: bool, calibration: Calibration = MINMAX) -> Grid:
    """The grid over the range that a calibration chooses for each row of values (n, m).

    Raises:
        ConfigError: a value is NaN or Inf.

    >>> fit_grid(torch.tensor([[-1.0, 0.5, 2.0]]), 4, symmetric=False).nearest(torch.tensor([[-1.0, 0.6, 2.0]]))
    tensor([[-1.,  1.,  2.]])
    """
    values = wide(rows.detach())
    if not torch.isfinite(values).all():
        raise ConfigError("Values that are NaN or Inf have no range. Check the weights and the calibration data.")
    low, high = calibration.range(values, n_codes, symmetric)
    return Grid.over(low, high, n_codes)


def _check_candidates(n: int) -> None:
    if n < 1:
        raise ConfigError(f"n_candidates={n} is less than 1.")


def _percentile(rows: Tensor, percent: float) -> Tensor:
    ordered = rows.sort(1).values  # torch.quantile is limited to 2^24 values
    place = (rows.shape[1] - 1) * percent / 100
    below = int(place)
    above = min(below + 1, rows.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below)


def _least(loss: Callable[[float], Tensor], n: int, like: Tensor) -> Tensor:
    """For each row the fraction i / n of least loss, the largest of equal ones."""
    best, least = torch.ones_like(like), loss(1.0)
    for i in range(n - 1, 0, -1):
        found = loss(i / n)
        best = torch.where(found < least, i / n, best)
        least = torch.minimum(found, least)
    return best


def _histogram(rows: Tensor, low: Tensor, high: Tensor, n_bins: int) -> Tensor:
    """(n, n_bins): how many values of each row are in each bin between low and high, (n,) each."""
    width = ((high - low) / n_bins).clamp_min(SMALLEST)[:, None]
    bins = ((rows - low[:, None]) / width).long().clamp(0, n_bins - 1)
    return torch.zeros(len(rows), n_bins, dtype=rows.dtype, device=rows.device).scatter_add(
        1, bins, torch.ones_like(rows)
    )


def _divergence(counts: Tensor, centres: Tensor, grid: Grid) -> Tensor:
    """KL(counts, those beyond the grid in its outermost bins || counts inside, spread evenly by level), (n,)."""
    lowest, scale = grid.lowest[:, None], grid.scale[:, None]
    u = centres / scale
    inside = (u >= lowest - 0.5) & (u <= lowest + (grid.n_codes - 0.5))
    held = counts * inside
    level = (u.round() - lowest).clamp(0, grid.n_codes - 1).long()
    zeros = torch.zeros(len(counts), grid.n_codes, dtype=counts.dtype, device=counts.device)
    totals = zeros.scatter_add(1, level, held)
    n_used = zeros.scatter_add(1, level, (held > 0).to(counts.dtype))
    spread = torch.where(held > 0, (totals / n_used.clamp_min(1)).gather(1, level), 0)
    ends = torch.stack([inside.int().argmax(1), inside.shape[1] - 1 - inside.flip(1).int().argmax(1)], 1)
    below = (counts * (u < lowest - 0.5)).sum(1)
    beyond = torch.stack([below, counts.sum(1) - held.sum(1) - below], 1)
    p = held.scatter_add(1, ends, beyond)
    p, q = (t / t.sum(1, keepdim=True).clamp_min(1) for t in (p, spread))
    return torch.where(p > 0, p * (p / q.clamp_min(1e-9)).log(), 0).sum(1)
