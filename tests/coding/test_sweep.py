"""The sweep over columns, against least squares solved anew for each column."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from secateur.coding.sweep import ChooseCode, sweep
from secateur.errors import GroupError

ROUND: ChooseCode = lambda block, roots, start: lambda column, i: column.round()  # noqa: E731


def problem(seed: int, n_out: int, n_in: int, *groups: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(*groups, n_in, n_in, generator=generator, dtype=torch.float64)
    x = torch.randn(*groups, 4 * n_in, n_in, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(*groups, n_out, n_in, generator=generator, dtype=torch.float64) * 2, x.mT @ x


def loss(weight: Tensor, coded: Tensor, hessian: Tensor) -> float:
    return float((((weight - coded) @ hessian) * (weight - coded)).sum())


def slow_sweep(weight: Tensor, hessian: Tensor, choose: ChooseCode, block: int) -> Tensor:
    """After each column, the free ones are the least-squares solution for all that are coded so far."""
    now = weight.clone()
    n = weight.shape[1]
    for i in range(n):
        if i % block == 0:
            inverse = torch.linalg.inv(hessian[i:, i:])
            # the root of column j in the block, when the columns from i to j - 1 have been coded
            roots = [torch.linalg.inv(hessian[j:, j:])[0, 0].sqrt() for j in range(i, min(i + block, n))]
            torch.testing.assert_close(roots[0] ** 2, inverse[0, 0])
            code = choose(now[:, i : i + block], torch.stack(roots)[None], i)
        now[:, i] = code(now[:, i], i % block)
        lost = (weight - now)[:, : i + 1]
        moved = torch.linalg.solve(hessian[i + 1 :, i + 1 :], hessian[i + 1 :, : i + 1] @ lost.T).T
        now[:, i + 1 :] = weight[:, i + 1 :] + moved
    return now


def two_of_four(block: Tensor, roots: Tensor, start: int) -> object:
    kept = (block / roots).abs().argsort(-1).argsort(-1) >= block.shape[-1] // 2
    return lambda column, i: column * kept[..., i]


def scaled(block: Tensor, roots: Tensor, start: int) -> object:
    scale = block.abs().amax(-1) / 7
    return lambda column, i: (column / scale).round() * scale


@pytest.mark.parametrize("choose", [ROUND, two_of_four, scaled])
@pytest.mark.parametrize(("n_in", "block"), [(1, 4), (8, 4), (11, 4), (12, 1), (7, 128), (13, 5)])
def test_each_column_finds_the_free_ones_at_their_best(choose: ChooseCode, n_in: int, block: int) -> None:
    weight, hessian = problem(n_in, 3, n_in)
    expected = slow_sweep(weight, hessian, choose, block)
    torch.testing.assert_close(sweep(weight, hessian, choose, block=block, damping=0), expected)


def test_groups_are_swept_side_by_side() -> None:
    weight, hessian = problem(0, 2, 9, 5)
    expected = torch.stack([sweep(w, h, two_of_four, block=4) for w, h in zip(weight, hessian, strict=True)])
    torch.testing.assert_close(sweep(weight, hessian, two_of_four, block=4), expected)


def test_what_needs_no_code_stays() -> None:
    weight, hessian = problem(0, 3, 10)
    assert torch.equal(sweep(weight, hessian, lambda *_: lambda column, i: column), weight)


def test_without_correlation_columns_are_coded_alone() -> None:
    weight, _ = problem(0, 3, 10)
    assert torch.equal(sweep(weight, torch.eye(10, dtype=torch.float64), ROUND), weight.round())


def test_rounding_loses_less_than_to_the_nearest_and_near_the_best_of_all() -> None:
    sums = torch.zeros(3)
    for seed in range(20):
        weight, hessian = problem(seed, 1, 4)
        floor = weight.floor()
        all_near = [floor + torch.tensor([up]) for up in itertools.product((-1, 0, 1, 2), repeat=4)]
        found = sweep(weight, hessian, ROUND, damping=0)
        best = min(loss(weight, near, hessian) for near in all_near)
        sums += torch.tensor([best, loss(weight, found, hessian), loss(weight, weight.round(), hessian)])
        assert loss(weight, found, hessian) >= best - 1e-9
    best, swept, nearest = sums.tolist()
    assert best <= swept < 0.7 * nearest


def test_inputs_that_are_always_zero_are_damped_or_refused() -> None:
    weight, hessian = problem(0, 2, 4)
    hessian[2] = hessian[:, 2] = 0
    assert bool(torch.isfinite(sweep(weight, hessian, ROUND)).all())
    with pytest.raises(GroupError, match="are dependent"):
        sweep(weight, hessian, ROUND, damping=0)
    hessian[0, 0] = torch.nan
    with pytest.raises(GroupError, match="NaN"):
        sweep(weight, hessian, ROUND)


def test_the_weight_given_is_not_changed_and_gives_its_dtype() -> None:
    weight, hessian = problem(0, 2, 4)
    before = weight.float()
    found = sweep(given := before.clone(), hessian, ROUND)
    assert torch.equal(given, before)
    assert found.dtype == torch.float32
