"""Least error under a budget, against trying every choice; and the curves that say what each width loses."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.allocate import (
    Budget,
    Cost,
    DynamicProgram,
    ErrorCurve,
    Global,
    Lagrangian,
    Space,
    Uniform,
    allocate,
    curve_of,
    knapsack,
)
from secateur.allocate.steps import price_steps
from secateur.errors import ConfigError, GroupError

SETTINGS = settings(max_examples=60, deadline=None)
SOLVERS = [Lagrangian, DynamicProgram]


@dataclass(frozen=True)
class Tiny:
    """A space small enough to try every choice."""

    space: Space
    curves: dict[str, ErrorCurve]
    floor: float
    round_to: int

    def choices(self):
        """Every choice of counts that floors, multiples and ties allow."""
        ranges = []
        for size in self.space.sizes.values():
            fewest = max(1, math.ceil(self.floor * size - 1e-9))
            step = self.round_to if size >= self.round_to else 1
            ranges.append([k for k in range(fewest, size + 1) if k % step == 0 or k == size])
        for counts in itertools.product(*ranges):
            named = dict(zip(self.space.sizes, counts, strict=True))
            if all(len({named[g] * 60 // self.space.sizes[g] for g in tie}) == 1 for tie in self.space.ties):
                yield named

    def error(self, counts):
        return sum(float(self.curves[name].errors[k]) for name, k in counts.items())

    def fits(self, counts, macs):
        return self.space.cost(counts).macs <= macs * self.space.cost({}).macs + 1e-9

    def optimum(self, macs):
        return min((self.error(c) for c in self.choices() if self.fits(c, macs)), default=None)

    def allocate(self, method, macs):
        found = allocate(self.curves, self.space, Budget(macs=macs), method(floor=self.floor, round_to=self.round_to))
        counts = {name: len(kept) for name, kept in found.keep.items()}
        assert self.optimum(macs) is None or (self.fits(counts, macs) and counts in self.choices())
        return self.error(counts)


def curve(size, generator, is_convex):
    if is_convex:
        return curve_of(torch.rand(size, generator=generator).square())
    errors = torch.randint(-2, 20, (size + 1,), generator=generator).double()
    errors[-1] = 0
    return ErrorCurve(errors, torch.randperm(size, generator=generator))


def additive(sizes, weights, ties):
    def cost(counts):
        return Cost(1, sum(weights[name] * counts.get(name, size) for name, size in sizes.items()))

    return Space(sizes, cost, ties)


def chain(sizes, inputs=2, outputs=3):
    def cost(counts):
        widths = [inputs, *(counts.get(name, size) for name, size in sizes.items()), outputs]
        return Cost(1, sum(a * b for a, b in pairwise(widths)))

    return Space(sizes, cost)


@st.composite
def tiny_spaces(draw, ties=True, is_convex=None):
    sizes = {f"g{i}": draw(st.sampled_from([1, 2, 3, 4, 6])) for i in range(draw(st.integers(1, 4)))}
    tied = draw(st.sampled_from([(), (("g0", "g1"),)])) if ties and len(sizes) > 1 else ()
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    weights = {name: draw(st.integers(1, 9)) for name in sizes}
    convex = draw(st.booleans()) if is_convex is None else is_convex
    curves = {name: curve(size, generator, convex) for name, size in sizes.items()}
    floor, round_to = draw(st.sampled_from([0.0, 0.4])), draw(st.sampled_from([1, 2]))
    if tied:
        round_to = 1
    return Tiny(additive(sizes, weights, tied), curves, floor, round_to)


fractions = st.floats(0.05, 1)


@SETTINGS
@given(tiny_spaces(), fractions)
def test_dynamic_programming_finds_the_best_choice_where_costs_add_up(tiny, macs):
    if (best := tiny.optimum(macs)) is not None:
        assert tiny.allocate(DynamicProgram, macs) == pytest.approx(best)


@SETTINGS
@given(tiny_spaces(ties=False, is_convex=True), fractions)
def test_the_lagrangian_misses_the_best_choice_by_less_than_one_step(tiny, macs):
    """Where curves are convex and costs add up; a step of two units where counts are even."""
    if (best := tiny.optimum(macs)) is not None:
        one_step = max(float(c.gains[:2].sum()) for c in tiny.curves.values())
        assert best - 1e-9 <= tiny.allocate(Lagrangian, macs) <= best + one_step


@SETTINGS
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 999), st.booleans(), fractions)
def test_solvers_are_never_worse_than_what_they_start_from(sizes, seed, is_convex, macs):
    """Where costs are products of neighbouring widths."""
    generator, named = torch.Generator().manual_seed(seed), {f"g{i}": size for i, size in enumerate(sizes)}
    curves = {name: curve(size, generator, is_convex) for name, size in named.items()}
    tiny = Tiny(chain(named), curves, 0.0, 1)
    if (best := tiny.optimum(macs)) is not None:
        uniform, by_score, lagrangian, dynamic = (
            tiny.allocate(method, macs) for method in (Uniform, Global, Lagrangian, DynamicProgram)
        )
        assert best - 1e-9 <= dynamic <= lagrangian + 1e-9
        assert lagrangian <= min(uniform, by_score) + 1e-9


@pytest.mark.slow
def test_solvers_come_close_to_the_best_choice_where_costs_are_products():
    """Over 60 chains of four coupled widths: how much of what the best choice saves over `Uniform` is found."""
    saved = dict.fromkeys([*SOLVERS, "best"], 0.0)
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        sizes = {f"g{i}": int(torch.randint(3, 8, (), generator=generator)) for i in range(4)}
        tiny = Tiny(chain(sizes), {n: curve(s, generator, True) for n, s in sizes.items()}, 0.0, 1)
        uniform = tiny.allocate(Uniform, 0.5)
        saved["best"] += uniform - tiny.optimum(0.5)
        for method in SOLVERS:
            saved[method] += uniform - tiny.allocate(method, 0.5)
    assert saved[Lagrangian] >= 0.8 * saved["best"]
    assert saved[DynamicProgram] >= 0.9 * saved["best"]


@SETTINGS
@given(st.integers(0, 999), st.floats(0.3, 1))
def test_a_latency_table_with_stairs_is_a_knapsack(seed, latency):
    """Time falls only where a count crosses a multiple of 4, as on hardware; the widest choice of a stair is free."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {f"g{i}": 9 for i in range(3)}
    table = {n: torch.randint(1, 9, (4,), generator=generator).cumsum(0).tolist() for n in sizes}

    def cost(counts):
        return Cost(1, 1, latency_ms=sum(table[n][math.ceil(counts.get(n, s) / 4)] for n, s in sizes.items()))

    curves = {name: curve(size, generator, True) for name, size in sizes.items()}
    found = allocate(curves, Space(sizes, cost), Budget(latency=latency), DynamicProgram(floor=0.0))
    choices = [dict(zip(sizes, c, strict=True)) for c in itertools.product(range(1, 10), repeat=3)]
    limit = latency * cost({}).latency_ms + 1e-9
    fitting = [c for c in choices if cost(c).latency_ms <= limit]
    if fitting:
        best = min(sum(float(curves[n].errors[k]) for n, k in c.items()) for c in fitting)
        assert sum(float(curves[n].errors[len(k)]) for n, k in found.keep.items()) == pytest.approx(best)


items = st.lists(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=5), min_size=1, max_size=4
)


@SETTINGS
@given(items, st.integers(0, 20), st.booleans())
def test_the_knapsack_is_the_best_of_all_picks(options, room, is_fractional):
    scale = 0.1 if is_fractional else 1.0
    errors = [torch.tensor([e for e, _ in item]).double() for item in options]
    costs = [torch.tensor([c * scale for _, c in item], dtype=torch.float64) for item in options]
    limit = (sum(min(c for _, c in item) for item in options) + room) * scale + 1e-9

    def total(picks, which):
        return sum(item[i][which] for item, i in zip(options, picks, strict=True))

    fitting = [p for p in itertools.product(*(range(len(i)) for i in options)) if total(p, 1) * scale <= limit]
    found = knapsack(errors, costs, limit)
    assert (total(found, 0), total(found, 1)) == min((total(p, 0), total(p, 1)) for p in fitting)


@pytest.mark.parametrize("n_states", [16, 64, 256])
def test_a_knapsack_of_few_states_fits_and_is_near_the_best(n_states):
    """With states in n slices of the room, each item may lose a slice: the error is that of a little less room."""
    generator = torch.Generator().manual_seed(0)
    gains = [torch.rand(24, generator=generator).sort(descending=True).values.double() for _ in range(12)]
    errors = [torch.cat([-g.cumsum(0).flip(0), g.new_zeros(1)]).flip(0) for g in gains]
    costs = [torch.cat([g.new_zeros(1), torch.rand(24, generator=generator).double().cumsum(0)]) for g in gains]

    def total(of, picks):
        return sum(float(values[i]) for values, i in zip(of, picks, strict=True))

    def best(limit, n):
        picks = knapsack(errors, costs, limit, n)
        assert total(costs, picks) <= limit
        return total(errors, picks)

    assert best(60.0, 20_000) <= best(60.0, n_states) <= best(60.0 * (1 - 12 / n_states), 20_000)


@SETTINGS
@given(st.lists(st.tuples(st.integers(-5, 9), st.integers(0, 4)), min_size=1, max_size=8))
def test_prices_are_the_slopes_of_the_convex_hull(steps):
    """price of step i = -(the least over starts before it of the best ratio over ends after it)."""
    gains, costs = (torch.tensor(column).double() for column in zip(*steps, strict=True))
    if not (costs > 0).all():
        costs = costs + 1.0

    def ratio(start, end):
        return float(gains[start:end].sum() / costs[start:end].sum())

    n = len(gains)
    slow = [-min(max(ratio(a, b) for b in range(i + 1, n + 1)) for a in range(i + 1)) for i in range(n)]
    torch.testing.assert_close(price_steps(gains, costs), torch.tensor(slow).double())


@pytest.mark.parametrize(
    ("gains", "costs", "expected"),
    [
        ([1, 0, 2], [0, 0, 1], [-math.inf, -math.inf, -2]),
        ([2, 1, 3], [1, 0, 3], [-3, -3, -1]),
        ([0, 0], [1, 0], [0, 0]),
        ([1, -1], [1, 0], [-1, math.inf]),
        ([], [], []),
    ],
)
def test_steps_that_cost_nothing_come_with_the_step_before(gains, costs, expected):
    found = price_steps(torch.tensor(gains).double(), torch.tensor(costs).double())
    assert found.tolist() == pytest.approx(expected)


@SETTINGS
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8))
def test_the_curve_of_scores_sums_what_is_dropped(scores):
    found = curve_of(torch.tensor(scores))
    best_first = sorted(range(len(scores)), key=lambda c: (-scores[c], c))
    assert found.order.tolist() == best_first
    for k in range(len(scores) + 1):
        assert found.errors[k] == sum(scores[c] for c in best_first[k:])


@pytest.mark.parametrize("method", [Uniform, Global, *SOLVERS])
def test_scores_and_their_curves_give_the_same_choice(method):
    scores = {f"g{i}": torch.randint(9, (8,), generator=torch.Generator().manual_seed(i)).float() for i in range(3)}
    space = chain(dict.fromkeys(scores, 8))
    curves = {name: curve_of(values) for name, values in scores.items()}
    assert allocate(scores, space, Budget(macs=0.6), method()) == allocate(curves, space, Budget(macs=0.6), method())


def test_units_stay_in_the_order_of_their_curve():
    path = ErrorCurve(torch.tensor([5.0, 1.0, 3.0, 0.0]), torch.tensor([2, 0, 1]))
    found = allocate({"a": path}, chain({"a": 3}), Budget(width=0.7), "uniform")
    assert found.keep == {"a": (0, 2)}


def test_a_group_that_is_worse_when_wider_stays_narrow_and_the_note_says_so():
    path = ErrorCurve(torch.tensor([5.0, -1.0, 3.0, 0.0]), torch.tensor([2, 0, 1]))
    found = allocate({"a": path}, chain({"a": 3}), Budget(width=0.7), "dynamic")
    assert found.keep == {"a": (2,)}
    assert found.notes == ("width is 0.3333 where 0.7 was asked: the allocation method takes no further step.",)


def test_several_budgets_hold_together():
    scores = {f"g{i}": torch.rand(40, generator=torch.Generator().manual_seed(i)) for i in range(4)}
    for method in SOLVERS:
        found = allocate(scores, chain(dict.fromkeys(scores, 40)), Budget(width=0.6, macs=0.4), method())
        assert 0.38 <= found.achieved["macs"] <= 0.4
        assert found.achieved["width"] <= 0.6


@pytest.mark.parametrize(
    ("errors", "order", "text"),
    [
        ([1.0, 0.0], [0, 1], r"errors \(2,\) and order \(2,\) are no curve"),
        ([0.0], [], r"errors \(1,\) and order \(0,\) are no curve"),
        ([3.0, 2.0, 1.0], [0, 1], "end with 1. They must be finite, and 0 where all units are kept"),
        ([3.0, math.nan, 0.0], [0, 1], "must be finite"),
        ([3.0, 2.0, 0.0], [1, 1], "order is no permutation of 0 to 1"),
    ],
)
def test_what_is_no_curve_is_refused(errors, order, text):
    with pytest.raises(GroupError, match=text):
        ErrorCurve(torch.tensor(errors), torch.tensor(order))


def test_a_curve_of_another_size_is_refused():
    with pytest.raises(GroupError, match=r"Scores of 'a' have shape \(2,\); its size is 3"):
        allocate({"a": curve_of(torch.ones(2))}, chain({"a": 3}), Budget(width=0.5))


def test_few_states_are_refused():
    with pytest.raises(ConfigError, match="n_states=1 is not an integer of at least 2"):
        DynamicProgram(n_states=1)
