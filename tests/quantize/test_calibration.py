"""Ranges, against slow and obvious versions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.errors import ConfigError
from secateur.quantize import CALIBRATIONS, Divergence, LeastSquares, MinMax, Percentile
from secateur.quantize.calibration import Calibration, Grid, fit_grid


def rows(n: int = 3, m: int = 400) -> Tensor:
    """Heavy tails, shifted row by row."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, m, generator=generator, dtype=torch.float64) ** 3 + torch.arange(n)[:, None]


def slow_range(row: list[float], symmetric: bool) -> tuple[float, float]:
    top = max(abs(v) for v in row)
    return (-top, top) if symmetric else (min(0.0, *row), max(0.0, *row))


def slow_grid(low: float, high: float, n_codes: int) -> list[float]:
    scale = (high - low) / (n_codes - 1)
    return [(round(low / scale) + i) * scale for i in range(n_codes)]


@pytest.mark.parametrize("name", sorted(CALIBRATIONS))
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_range_holds_zero_and_is_inside_that_of_all_values(name: str, symmetric: bool) -> None:
    calibration = CALIBRATIONS[name]()
    for values in (rows(), rows().abs(), -rows().abs(), torch.zeros(2, 50), torch.full((2, 50), 3.0)):
        low, high = calibration.range(values, 15, symmetric)
        ends = torch.tensor([slow_range(row, symmetric) for row in values.tolist()], dtype=values.dtype)
        assert bool((ends[:, 0] - 1e-9 <= low).all() & (low <= 0).all() & (high >= 0).all())
        assert bool((high <= ends[:, 1] + 1e-9).all())
        assert not symmetric or torch.equal(low, -high)


@pytest.mark.parametrize("symmetric", [True, False])
def test_minmax(symmetric: bool) -> None:
    low, high = MinMax().range(rows(), 15, symmetric)
    expected = [slow_range(row, symmetric) for row in rows().tolist()]
    assert list(zip(low.tolist(), high.tolist(), strict=True)) == expected


@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile(percentile: float) -> None:
    values = rows()
    _, high = Percentile(percentile=percentile).range(values, 15, True)
    np.testing.assert_allclose(high, np.percentile(values.abs().numpy(), percentile, axis=1))
    low, high = Percentile(percentile=percentile).range(values, 15, False)
    np.testing.assert_allclose(low, np.minimum(0, np.percentile(values.numpy(), (100 - percentile) / 2, axis=1)))
    np.testing.assert_allclose(high, np.percentile(values.numpy(), 50 + percentile / 2, axis=1))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("n_codes", [3, 16])
def test_least_squares_is_the_best_of_its_candidates(symmetric: bool, n_codes: int) -> None:
    low, high = LeastSquares(n_candidates=20).range(rows(), n_codes, symmetric)
    for row, found in zip(rows().tolist(), zip(low.tolist(), high.tolist(), strict=True), strict=True):
        ends = slow_range(row, symmetric)
        candidates = [tuple(end * i / 20 for end in ends) for i in range(1, 21)]
        loss = {c: sum(min((v - g) ** 2 for g in slow_grid(*c, n_codes)) for v in row) for c in candidates}
        np.testing.assert_allclose(found, min(loss, key=loss.__getitem__))


def slow_divergence(row: list[float], ends: tuple[float, float], fraction: float, n_bins: int, n_codes: int) -> float:
    width = (ends[1] - ends[0]) / n_bins
    counts = [0] * n_bins
    for v in row:
        counts[min(n_bins - 1, int((v - ends[0]) / width))] += 1
    grid = slow_grid(ends[0] * fraction, ends[1] * fraction, n_codes)
    half = (grid[1] - grid[0]) / 2
    centres = [ends[0] + (i + 0.5) * width for i in range(n_bins)]
    inside = [i for i, c in enumerate(centres) if grid[0] - half <= c <= grid[-1] + half]
    p, q = [0.0] * n_bins, [0.0] * n_bins
    for i, n in enumerate(counts):
        p[min(max(i, inside[0]), inside[-1])] += n
    for g in grid:
        mine = [i for i in inside if min(grid, key=lambda h: abs(h - centres[i])) == g and counts[i]]
        for i in mine:
            q[i] = sum(counts[j] for j in mine) / len(mine)
    a, b = sum(p), max(1.0, sum(q))
    return sum(x / a * math.log(x / a / max(y / b, 1e-9)) for x, y in zip(p, q, strict=True) if x)


@pytest.mark.parametrize("symmetric", [True, False])
def test_divergence_is_the_least_of_its_candidates(symmetric: bool) -> None:
    calibration = Divergence(n_bins=101, n_candidates=12)
    low, high = calibration.range(rows(), 8 - symmetric, symmetric)
    for row, found in zip(rows().tolist(), zip(low.tolist(), high.tolist(), strict=True), strict=True):
        ends = slow_range(row, symmetric)
        loss = {i / 12: slow_divergence(row, ends, i / 12, 101, 8 - symmetric) for i in range(12, 0, -1)}
        best = min(loss, key=loss.__getitem__)
        np.testing.assert_allclose(found, (ends[0] * best, ends[1] * best), err_msg=str(loss))


def test_outliers_are_left_out_by_all_but_minmax() -> None:
    values = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    values[0, 0] = 100.0
    tops = {name: float(kind().range(values, 15, True)[1]) for name, kind in CALIBRATIONS.items()}
    assert tops["minmax"] == 100
    assert all(top < 30 for name, top in tops.items() if name != "minmax")


def test_a_grid_has_its_levels_at_equal_distances_and_zero_among_them() -> None:
    low, high = torch.tensor([-1.0, 0.0, -3.0]), torch.tensor([2.0, 5.0, 0.0])
    grid = Grid.over(low, high, 16)
    found = grid.nearest(torch.linspace(-9, 9, 2001).expand(3, -1))
    for row, a, b in zip(found, low.tolist(), high.tolist(), strict=True):
        np.testing.assert_allclose(row.unique(), sorted(slow_grid(a, b, 16)), atol=1e-6)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ConfigError, match="percentile=50"):
        Percentile(percentile=50)
    for kind in (LeastSquares, Divergence):
        with pytest.raises(ConfigError, match="n_candidates=0"):
            kind(n_candidates=0)
    with pytest.raises(ConfigError, match="n_bins=1"):
        Divergence(n_bins=1)
    with pytest.raises(ConfigError, match="NaN or Inf"):
        fit_grid(torch.tensor([[torch.nan]]), 4, True, MinMax())
    with pytest.raises(NotImplementedError):
        Calibration().range(rows(), 4, True)
