"""Examples of allocation: ties of different widths, coarse steps, notes, errors, how often the cost is asked for."""

from __future__ import annotations

import pytest
import torch

from secateur.allocate import AllocationMethod, Budget, Cost, Global, Space, Uniform, allocate, make_method
from secateur.errors import ConfigError, GroupError, RegistryError


def linear_space(sizes, ties=(), weights=None):
    """Each unit of group g costs weights[g] parameters and twice as many MACs."""
    weights = weights or dict.fromkeys(sizes, 1)

    def cost(counts):
        params = sum(weights[name] * counts.get(name, size) for name, size in sizes.items())
        return Cost(params, 2 * params)

    return Space(sizes, cost, ties)


def rising(sizes):
    return {name: torch.arange(size, dtype=torch.float32) for name, size in sizes.items()}


def counts(found):
    return {name: len(kept) for name, kept in found.keep.items()}


def test_a_stream_tied_to_its_heads_moves_by_whole_heads_and_keeps_its_own_best_units():
    sizes = {"stream": 768, "heads": 12}
    scores = {"stream": torch.arange(768).float(), "heads": -torch.arange(12).float()}
    found = allocate(scores, linear_space(sizes, (("stream", "heads"),)), Budget(width=0.5), Uniform())
    assert found.keep == {"stream": tuple(range(384, 768)), "heads": tuple(range(6))}
    assert found.notes == ()


def test_ties_that_share_a_group_are_one_tie():
    sizes = {"a": 8, "b": 4, "c": 6}
    found = allocate(rising(sizes), linear_space(sizes, (("a", "b"), ("b", "c"))), Budget(width=0.6), Global(floor=0.0))
    assert counts(found) == {"a": 4, "b": 2, "c": 3}


def test_a_coarse_tie_steps_aside_and_finer_groups_meet_the_budget():
    """The tied pair moves by a third of the model; the budget falls between its steps."""
    sizes = {"stream": 300, "heads": 3, "mlp": 300}
    space = linear_space(sizes, (("stream", "heads"),))
    found = allocate(rising(sizes), space, Budget(macs=0.6), Uniform())
    assert counts(found)["stream"] == 100 * counts(found)["heads"]
    assert 0.58 <= found.achieved["macs"] <= 0.6
    assert found.notes == ()


def test_rounding_gives_multiples_and_leaves_narrow_groups_alone():
    sizes = {"wide": 100, "narrow": 5}
    found = allocate(rising(sizes), linear_space(sizes), Budget(width=0.5), Uniform(round_to=8))
    assert counts(found)["wide"] % 8 == 0
    assert counts(found)["narrow"] < 5


def test_global_takes_from_where_scores_are_low_down_to_the_floor():
    sizes = {"weak": 10, "strong": 10}
    scores = {"weak": torch.rand(10), "strong": torch.rand(10) + 1}
    found = allocate(scores, linear_space(sizes), Budget(width=0.6), Global(floor=0.2))
    assert counts(found) == {"weak": 2, "strong": 10}


def test_uniform_does_not_look_across_groups():
    sizes = {"weak": 10, "strong": 10}
    scores = {"weak": torch.rand(10), "strong": torch.rand(10) + 1}
    assert counts(allocate(scores, linear_space(sizes), Budget(width=0.6), "uniform")) == {"weak": 6, "strong": 6}


def test_all_budgets_hold_and_a_note_names_the_tighter_one():
    sizes = {"a": 100, "b": 100}
    found = allocate(rising(sizes), linear_space(sizes), Budget(width=0.9, macs=0.4), Uniform())
    assert found.achieved == {"width": 0.4, "params": 0.4, "macs": 0.4}
    assert found.notes == ("width is 0.4000 where 0.9 was asked: macs=0.4 is the tighter budget.",)


def test_a_budget_below_the_floors_says_what_is_left():
    sizes = {"a": 10}
    found = allocate(rising(sizes), linear_space(sizes), Budget(macs=0.2), Uniform(floor=0.5))
    assert found.achieved["macs"] == 0.5
    assert found.notes == (
        "macs=0.2 is out of reach: with every group at its floor, 0.5000 of the dense model is left. "
        "Lower floor or round_to, or free groups that are frozen or tied.",
    )


def test_a_coarse_step_is_named():
    sizes = {"a": 3}
    found = allocate(rising(sizes), linear_space(sizes), Budget(macs=0.5), Uniform())
    assert counts(found) == {"a": 1}
    assert found.notes[0].startswith(
        "macs is 0.3333 where 0.5 was asked: one more step of 'a' would exceed the budget."
    )


def test_a_tie_to_a_group_without_scores_keeps_all_and_says_so():
    sizes = {"a": 4, "b": 4, "c": 4}
    scores = rising(sizes)
    del scores["b"]
    found = allocate(scores, linear_space(sizes, (("a", "b"),)), Budget(width=0.75), Uniform())
    assert counts(found) == {"a": 4, "c": 2}
    assert "'a' keeps its full width: it is tied to 'b', not scored." in found.notes


def test_rounding_that_leaves_no_smaller_width_is_noted():
    sizes = {"a": 8, "b": 64}
    found = allocate(rising(sizes), linear_space(sizes), Budget(width=0.5), Uniform(round_to=8))
    assert counts(found)["a"] == 8
    assert "No smaller width is a multiple of round_to=8 for 'a'; all is kept there." in found.notes


def test_the_cost_is_asked_for_rarely():
    """150 groups, 460,000 units: about log2 of that many calls."""
    sizes = {f"g{i}": 12_288 if i % 4 == 0 else 128 for i in range(150)}
    space, calls = linear_space(sizes), []
    counted = Space(sizes, lambda wanted: calls.append(1) or space.cost(wanted))
    found = allocate(rising(sizes), counted, Budget(macs=0.37), Global())
    assert found.achieved["macs"] == pytest.approx(0.37, abs=0.001)
    assert len(calls) <= 30


def test_a_width_budget_asks_for_the_cost_twice():
    sizes, calls = {"a": 64, "b": 64}, []
    space = Space(sizes, lambda wanted: calls.append(1) or Cost(1, 1))
    allocate(rising(sizes), space, Budget(width=0.3), Uniform())
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("scores", "error", "text"),
    [
        ({}, ConfigError, "nothing can be pruned"),
        ({"x": torch.zeros(3)}, ConfigError, "Scores name 'x', which the space does not have"),
        ({"a": torch.zeros(3)}, GroupError, r"Scores of 'a' have shape \(3,\); its size is 4"),
        ({"a": torch.tensor([0.0, 1.0, float("nan"), 2.0])}, GroupError, "Scores of 'a' hold NaN or Inf"),
    ],
)
def test_bad_scores_are_refused(scores, error, text):
    with pytest.raises(error, match=text):
        allocate(scores, linear_space({"a": 4}), Budget(width=0.5))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Budget(), "An empty budget"),
        (lambda: Budget(macs=0.0), r"macs=0.0 is outside \(0, 1\]"),
        (lambda: Budget(params=1.5), r"params=1.5 is outside \(0, 1\]"),
        (lambda: Budget(width=float("nan")), "width=nan is outside"),
        (lambda: Budget(width=True), "width=True is outside"),
        (lambda: Budget(size="all"), r"size='all' is outside \(0, 1\]"),
        (lambda: Budget(latency_ms=0), "latency_ms=0 is no positive number. The end of its name is its unit"),
        (lambda: Budget(size_bytes=float("inf")), "size_bytes=inf is no positive number"),
        (lambda: Budget(drop_points=-1), r"drop_points=-1 is outside \[0, 100\)"),
        (lambda: Uniform(floor=1.1), r"floor=1.1 is outside \[0, 1\]"),
        (lambda: Global(round_to=0), "round_to=0 is not a positive integer"),
        (lambda: linear_space({"a": 0}), "Group 'a' has size 0"),
        (lambda: linear_space({"a": 2}, (("a", "b"),)), "A tie names 'b', which is no group"),
        (lambda: make_method(3), "3 is no allocation method"),
    ],
)
def test_bad_settings_are_refused(build, text):
    with pytest.raises(ConfigError, match=text):
        build()


def test_an_unknown_method_lists_the_known():
    with pytest.raises(RegistryError, match=r"No allocation method 'even'\. Known: .*global, .*uniform"):
        make_method("even")


def test_a_budget_on_what_the_model_has_none_of_is_refused():
    with pytest.raises(ConfigError, match=r"asks for macs=0.5, but the dense model has 0 macs"):
        allocate({"a": torch.rand(4)}, Space({"a": 4}, lambda wanted: Cost(4, 0)), Budget(macs=0.5))


def test_a_budget_on_time_needs_a_time():
    with pytest.raises(ConfigError, match=r"latency=0.5, but the dense model has 0 latency_ms. No time was measured"):
        allocate(rising({"a": 4}), linear_space({"a": 4}), Budget(latency=0.5))


def test_a_budget_on_a_metric_is_not_for_allocation():
    with pytest.raises(ConfigError, match=r"drop_points=0.5 is met by trying budgets on data, which secateur.compress"):
        allocate(rising({"a": 4}), linear_space({"a": 4}), Budget(macs=0.5, drop_points=0.5))


def test_budgets_with_a_unit_speak_in_it():
    sizes = {"a": 100}
    space = Space(sizes, lambda wanted: Cost(1, 1, size_bytes=50 * wanted["a"], latency_ms=0.02 * wanted["a"]))
    found = allocate(rising(sizes), space, Budget(size_bytes=4000, latency_ms=1), Uniform())
    assert counts(found) == {"a": 50}
    assert found.notes == ("size_bytes is 2,500 where 4000 was asked: latency_ms=1 is the tighter budget.",)
    found = allocate(rising(sizes), space, Budget(latency_ms=0.1), Uniform(floor=0.5))
    assert found.notes[0].startswith("latency_ms=0.1 is out of reach: with every group at its floor, 1 is left.")


def test_a_budget_beyond_the_dense_model_keeps_it():
    sizes = {"a": 10}
    found = allocate(rising(sizes), Space(sizes, lambda wanted: Cost(1, 1, size_bytes=10)), Budget(size_bytes=1e9))
    assert counts(found) == sizes
    assert found.notes == ()


def test_budget_prints_what_was_asked():
    assert str(Budget(width=0.5, macs=0.25)) == "width=0.5, macs=0.25"


def test_methods_are_hashable_values():
    assert Uniform() == Uniform(floor=0.1)
    assert len({Uniform(), Uniform(), Global()}) == 2
    assert isinstance(make_method("global"), AllocationMethod)
