"""The fit of weights from moments, against least squares on the rows themselves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.laws.settings import some
from torch import Tensor

from secateur.compensation.moments import Moments, damped, fit
from secateur.errors import GroupError


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def folds(x: Tensor, y: Tensor, n: int = 2) -> list[Moments]:
    return [Moments.of(x[i::n], y[i::n]) for i in range(n)]


def ridge(x: Tensor, y: Tensor, start: Tensor, damping: float) -> Tensor:
    """The weight (o, k) nearest to `start` in ridge regression of y on x, rows (n, k) and (n, o)."""
    penalty = damping * x.square().sum(0).mean()
    wide = torch.cat([x, penalty.sqrt() * torch.eye(x.shape[1], dtype=x.dtype)])
    right = torch.cat([y - x @ start.T, torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)])
    return start + torch.linalg.lstsq(wide, right).solution.T


@some(30)
@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.booleans(), st.integers(0, 10**6))
def test_without_noise_the_fit_is_least_squares(groups: int, k: int, o: int, has_shift: bool, seed: int):
    x, weight = normal(200, groups, k, seed=seed), normal(groups, o, k, seed=seed + 1)
    shift = normal(groups, o, seed=seed + 2) * has_shift
    y = torch.einsum("ngk,gok->ngo", x, weight) + shift
    found = fit(folds(x, y), torch.zeros_like(weight), has_shift=has_shift)
    torch.testing.assert_close(found.weight, weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.shift, shift, rtol=1e-4, atol=1e-4)
    for g in range(groups):
        design = torch.cat([x[:, g], torch.ones(200, 1, dtype=x.dtype)], 1)[:, : k + has_shift]
        best = torch.linalg.lstsq(design, y[:, g]).solution
        torch.testing.assert_close(found.weight[g], best[:k].T, rtol=1e-4, atol=1e-4)
    assert found.before == pytest.approx(1, abs=1e-9)
    assert found.after < 1e-8


def test_errors_are_relative_to_the_target_about_its_mean():
    x, y, start = normal(60, 1, 3), normal(60, 1, 2, seed=1) + 5, normal(1, 2, 3, seed=2)
    found = fit(folds(x, y), start, has_shift=True)
    energy = (y - y.mean(0)).square().sum()
    for weight, error in ((start, found.before), (found.weight, found.after)):
        gap = y - torch.einsum("ngk,gok->ngo", x, weight)
        assert error == pytest.approx(float((gap - gap.mean(0)).square().sum() / energy))
    gap = y - torch.einsum("ngk,gok->ngo", x, found.weight) - found.shift
    torch.testing.assert_close(gap.mean(0), torch.zeros(1, 2, dtype=gap.dtype))


@pytest.mark.parametrize(("noise", "damping"), [(0.0, 1e-6), (100.0, 1e-1)])
def test_folds_choose_the_damping(noise: float, damping: float):
    """Noise calls for the largest, and its absence for the smallest."""
    x, weight = normal(24, 1, 8), normal(1, 3, 8, seed=1)
    y = x @ weight[0].T + noise * normal(24, 1, 3, seed=2)
    found = fit(folds(x, y), weight, has_shift=False)
    torch.testing.assert_close(found.weight[0], ridge(x[:, 0], y[:, 0], weight[0], damping))


def test_of_one_fold_the_damping_is_a_thousandth():
    x, y, start = normal(24, 1, 8), normal(24, 1, 3, seed=1), normal(1, 3, 8, seed=2)
    found = fit(folds(x, y, 1), start, has_shift=False)
    torch.testing.assert_close(found.weight[0], ridge(x[:, 0], y[:, 0], start[0], 1e-3))


def test_where_nothing_is_to_be_learned_the_weights_stay():
    """Features that are always zero, or always the same where a shift takes care of them."""
    start = normal(1, 2, 3)
    for x in (torch.zeros(20, 1, 3, dtype=torch.float64), torch.full((20, 1, 3), 2.0, dtype=torch.float64)):
        y = normal(20, 1, 2, seed=1)
        found = fit(folds(x, y), start, has_shift=True)
        torch.testing.assert_close(found.weight, start)
        torch.testing.assert_close(found.shift, (y - x @ start[0].T).mean(0))


@some(10)
@given(st.integers(0, 10**6), st.booleans(), st.floats(0, 3))
def test_the_fit_is_no_worse_than_what_was_there(seed: int, has_shift: bool, noise: float):
    x, start = normal(40, 2, 5, seed=seed), normal(2, 3, 5, seed=seed + 1)
    y = torch.einsum("ngk,gok->ngo", x, start) + noise * normal(40, 2, 3, seed=seed + 2)
    found = fit(folds(x, y), start, has_shift=has_shift)
    assert found.after <= found.before + 1e-12


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["x", "y"])
def test_values_that_are_no_numbers_are_refused(bad: float, where: str):
    x, y = normal(10, 1, 3), normal(10, 1, 2)
    (x if where == "x" else y)[3] = bad
    with pytest.raises(GroupError, match="NaN or Inf"):
        fit(folds(x, y), normal(1, 2, 3), has_shift=True)


def test_damping_is_of_the_mean_diagonal_of_each_group():
    gram = torch.stack([torch.diag(torch.tensor([1.0, 3.0])), torch.zeros(2, 2)]).double()
    expected = torch.stack([torch.diag(torch.tensor([1.2, 3.2])), torch.diag(torch.tensor([0.1, 0.1]))]).double()
    torch.testing.assert_close(damped(gram, 0.1), expected)
