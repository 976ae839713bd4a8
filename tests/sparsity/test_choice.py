"""Which weights stay: counts are exact, ties keep the lower index, and what is gone never comes back."""

from __future__ import annotations

from math import inf

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import ConfigError, RegistryError
from secateur.sparsity import NM, PATTERNS, Block, Choice, Pattern, Unstructured, make_pattern
from secateur.sparsity.patterns import keep_best, shares

CASES = [Unstructured(), NM(n=1, m=4), NM(n=2, m=4), NM(n=5, m=8), Block(rows=2, cols=4), Block(rows=3, cols=1)]
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5).map(lambda n: 8 * n))


def drawn(shape: tuple[int, ...], seed: int, part: float) -> tuple[Tensor, Tensor]:
    """Scores with many ties, and which weights are there."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 4, shape, generator=generator).float(),
        torch.rand(shape, generator=generator) < part,
    )


def slow_best(scores: list[float], kept: int) -> list[bool]:
    """The best ones, by sorting (score, index) pairs."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    chosen = {i for i in order[:kept] if scores[i] > -inf}
    return [i in chosen for i in range(len(scores))]


def test_every_registered_pattern_has_a_case() -> None:
    assert {type(case) for case in CASES} == set(PATTERNS.values())


@given(st.lists(st.sampled_from([-inf, 0.0, 1.0, 2.0]), min_size=1, max_size=12), st.integers(0, 14))
@settings(deadline=None)
def test_the_best_are_those_of_a_sort(scores: list[float], kept: int) -> None:
    found = keep_best(torch.tensor([scores, scores]), torch.tensor([kept, 0]))
    assert found.tolist() == [slow_best(scores, kept), [False] * len(scores)]


@given(st.lists(st.integers(0, 9), max_size=8), st.data())
def test_shares_add_up_and_fit(amounts: list[int], data: st.DataObject) -> None:
    total = data.draw(st.integers(0, sum(amounts)))
    found = shares(total, torch.tensor(amounts, dtype=torch.int64)).tolist()
    assert sum(found) == total
    assert all(0 <= part <= amount for part, amount in zip(found, amounts, strict=True))
    assert all(
        abs(part - total * amount / max(1, sum(amounts))) < 1 for part, amount in zip(found, amounts, strict=True)
    )


@pytest.mark.parametrize("pattern", CASES, ids=str)
@given(shape=SHAPES, seed=st.integers(0, 99), part=st.sampled_from([0.3, 1.0]), keep=st.floats(0, 1))
@settings(deadline=None, max_examples=25)
def test_chosen_at_once_or_in_parts_the_count_is_exact(
    pattern: Pattern, shape: tuple[int, ...], seed: int, part: float, keep: float
) -> None:
    scores, there = drawn(shape, seed, part)
    n_units = int((pattern.units(torch.where(there, 0.0, -inf).flatten(0, 1)) > -inf).sum())
    choice = Choice(pattern, there, round(keep * n_units))
    whole = choice(scores)
    starts = range(0, shape[-1], pattern.columns)
    parts = [choice.part(scores[..., at : at + pattern.columns], at) for at in starts]
    for mask in (whole, torch.cat(parts, -1)):
        assert bool((mask <= there).all())
        if isinstance(pattern, NM):
            groups, before = (m.view(-1, pattern.m).sum(1) for m in (mask, there))
            assert torch.equal(groups, before.clamp(max=pattern.n))
        else:
            units = pattern.units(torch.where(mask, 0.0, -inf).flatten(0, 1)) > -inf
            assert int(units.sum()) == choice.kept


@given(shape=SHAPES, seed=st.integers(0, 99), sparsity=st.floats(0, 0.99))
@settings(deadline=None, max_examples=25)
def test_rows_keep_equal_parts(shape: tuple[int, ...], seed: int, sparsity: float) -> None:
    scores, there = drawn(shape, seed, 1.0)
    rows, columns = shape[0] * shape[1], shape[2]
    kept = rows * columns - round(sparsity * rows * columns)
    mask = Choice(Unstructured(), there, kept, per_row=True)(scores).flatten(0, 1)
    assert int(mask.sum()) == kept
    assert int(mask.sum(1).max() - mask.sum(1).min()) <= 1
    for row, stays in zip(scores.flatten(0, 1), mask, strict=True):
        assert stays.tolist() == slow_best(row.tolist(), int(stays.sum()))


def test_blocks_go_as_one() -> None:
    scores = torch.arange(30.0).view(1, 5, 6)
    pattern = Block(rows=2, cols=4)
    sums = [[scores[0, i : i + 2, j : j + 4].sum() for j in (0, 4)] for i in (0, 2, 4)]
    torch.testing.assert_close(pattern.units(scores[0]), torch.tensor(sums))
    mask = Choice(pattern, torch.ones(1, 5, 6, dtype=torch.bool), 2)(scores)
    best = torch.tensor(sums).flatten().topk(2).indices.tolist()
    expected = torch.zeros(5, 6, dtype=torch.bool)
    for unit in best:
        expected[unit // 2 * 2 : unit // 2 * 2 + 2, unit % 2 * 4 : unit % 2 * 4 + 4] = True
    assert torch.equal(mask[0], expected)


def test_patterns_are_read_from_text() -> None:
    assert make_pattern("4:8") == make_pattern("nm?n=4&m=8") == NM(n=4, m=8)
    assert NM(n=1, m=4).sparsity == 0.75
    assert NM().misfit(6) == "its 6 inputs are no multiple of 4"
    with pytest.raises(ConfigError, match="4:2 is no pattern"):
        make_pattern("4:2")
    with pytest.raises(ConfigError, match="0 × 4 weights is none"):
        make_pattern("block?rows=0")
    with pytest.raises(RegistryError, match="No pattern 'rows'"):
        make_pattern("rows")
