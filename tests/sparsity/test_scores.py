"""Scores against the published algorithms, written out plainly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from secateur.calls import make
from secateur.errors import ConfigError, RegistryError
from secateur.layers import gram, squares
from secateur.sparsity import (
    NM,
    SCORES,
    Block,
    Choice,
    Magnitude,
    Score,
    SparseGPT,
    Taylor,
    Unstructured,
    Wanda,
)

from .published import best_for, sparsegpt, wanda, wanda_nm

CASES: list[Score] = [Magnitude(), Taylor(), Wanda(), SparseGPT(), SparseGPT(damping=0.1)]


def problem(seed: int = 0, out: int = 6, n_in: int = 16, n: int = 40) -> tuple[Tensor, Tensor]:
    """A weight, and inputs that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(n, n_in, generator=generator) @ torch.randn(n_in, n_in, generator=generator)
    return torch.randn(out, n_in, generator=generator).double(), mixed.double()


def halved(score: Score, weight: Tensor, x: Tensor, choice: Choice | None = None) -> Tensor:
    rows = x[:, None]
    seen = score.of_inputs(rows) if score.of_inputs is not None else weight.flip(0)[None]
    choice = choice or Choice(Unstructured(), torch.ones(1, *weight.shape, dtype=torch.bool), weight.numel() // 2)
    found, stays = score.sparsify(weight[None], seen, choice)
    return torch.where(stays, found, 0)[0]


def error(weight: Tensor, other: Tensor, x: Tensor) -> float:
    return float((x @ (weight - other).T).square().sum())


def test_every_registered_score_has_a_case() -> None:
    assert {type(case) for case in CASES} == set(SCORES.values())


@pytest.mark.parametrize("score", CASES, ids=str)
def test_what_every_score_promises(score: Score) -> None:
    weight, x = problem()
    seen = score.of_inputs(x[:, None]) if score.of_inputs is not None else weight[None]
    scores = score.score(weight[None], seen)
    assert scores.shape == (1, *weight.shape)
    assert bool((scores >= 0).all())
    there = torch.rand(1, *weight.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    for pattern in (Unstructured(), NM(n=1, m=4), Block(rows=2, cols=2)):
        found = halved(score, weight, x, Choice(pattern, there, 5))
        assert bool((found[~there[0]] == 0).all())  # a mask only grows
        assert bool((found != 0).any())


def test_magnitude_and_taylor_are_their_formulas() -> None:
    weight, _ = problem()
    torch.testing.assert_close(Magnitude().score(weight, None), weight.abs())
    torch.testing.assert_close(Taylor().score(weight, 2 * weight), 2 * weight**2)


@pytest.mark.parametrize("seed", range(3))
def test_wanda_is_the_published_one(seed: int) -> None:
    weight, x = problem(seed)
    per_row = Choice(Unstructured(), torch.ones(1, *weight.shape, dtype=torch.bool), weight.numel() // 2, per_row=True)
    torch.testing.assert_close(halved(Wanda(), weight, x, per_row), wanda(weight, x, 0.5), rtol=0, atol=0)
    for n, m in ((2, 4), (1, 4), (4, 8)):
        choice = Choice(NM(n=n, m=m), torch.ones(1, *weight.shape, dtype=torch.bool), 0)
        torch.testing.assert_close(halved(Wanda(), weight, x, choice), wanda_nm(weight, x, n, m), rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_sparsegpt_is_the_published_one(seed: int) -> None:
    weight, x = problem(seed)
    expected = sparsegpt(weight, x, 0.5, block=128, damping=0.01)
    torch.testing.assert_close(halved(SparseGPT(), weight, x), expected)
    for n, m in ((2, 4), (1, 4), (4, 8)):
        choice = Choice(NM(n=n, m=m), torch.ones(1, *weight.shape, dtype=torch.bool), 0)
        expected = sparsegpt(weight, x, 1 - n / m, block=m, damping=0.1, m=m)
        torch.testing.assert_close(halved(SparseGPT(damping=0.1), weight, x, choice), expected)


def test_sparsegpt_chooses_block_by_block_of_columns() -> None:
    weight, x = problem(out=2, n_in=300, n=400)
    expected = sparsegpt(weight, x, 0.5, block=128, damping=0.01)
    torch.testing.assert_close(halved(SparseGPT(), weight, x), expected)


@pytest.mark.parametrize("seed", range(5))
def test_sparsegpt_lies_between_the_best_weights_of_its_mask_and_no_update(seed: int) -> None:
    weight, x = problem(seed)
    found = halved(SparseGPT(damping=0), weight, x)
    best = best_for(weight, x, found != 0)
    still = torch.where(found != 0, weight, 0)
    assert error(weight, best, x) <= error(weight, found, x) * (1 + 1e-9)
    assert error(weight, found, x) < error(weight, still, x)


@pytest.mark.parametrize("seed", range(3))
def test_where_only_first_columns_go_sparsegpt_is_exactly_the_best(seed: int) -> None:
    """All columns that stay come later, so nothing that could adapt is missed."""
    weight, x = problem(seed)
    there = torch.ones(1, *weight.shape, dtype=torch.bool)
    for n_gone in (1, 3):
        there[..., :n_gone] = False
        found = halved(SparseGPT(damping=0), weight, x, Choice(Unstructured(), there, weight.numel()))
        torch.testing.assert_close(found, best_for(weight, x, there[0]))
        costs = SparseGPT(damping=0).score(weight[None], gram(x[:, None]))[0]
        if n_gone == 1:  # and it costs what the score says
            assert error(weight, found, x) == pytest.approx(float(costs[:, 0].sum()))


def test_inputs_that_are_never_there_lose_their_weights_first() -> None:
    weight, x = problem()
    x[:, 5] = 0
    weight[:, 5] = 100
    for score in (Wanda(), SparseGPT()):
        found = halved(score, weight, x)
        assert bool((found[:, 5] == 0).all())
        assert bool(torch.isfinite(found).all())


def test_sums_over_inputs_are_their_formulas() -> None:
    rows = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(squares(rows), torch.einsum("ngk,ngk->gk", rows, rows))
    torch.testing.assert_close(gram(rows), torch.einsum("ngk,ngl->gkl", rows, rows))


def test_scores_are_read_from_text() -> None:
    assert make(SCORES, "sparsegpt?damping=0.1") == SparseGPT(damping=0.1)
    with pytest.raises(ConfigError, match="damping=-1 is negative"):
        make(SCORES, "sparsegpt?damping=-1")
    with pytest.raises(RegistryError, match="No score of weights 'l9'"):
        make(SCORES, "l9")
