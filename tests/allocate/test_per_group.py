"""Methods that look at each group by itself, and the one that ranks groups of one kind together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.allocate import (
    Budget,
    Cost,
    ErrorCurve,
    Global,
    Isomorphic,
    Quantile,
    Space,
    TopN,
    Uniform,
    allocate,
    topology,
)
from secateur.errors import ConfigError

SETTINGS = settings(max_examples=60, deadline=None)


def space(sizes, ties=(), kinds=None):
    return Space(sizes, lambda counts: Cost(1, sum(counts.get(n, s) for n, s in sizes.items())), ties, kinds or {})


def counts(found):
    return {name: len(kept) for name, kept in found.keep.items()}


score_lists = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=3)


@SETTINGS
@given(score_lists, st.floats(0, 0.99))
def test_quantile_keeps_exactly_the_units_that_reach_it(scores, q):
    values = {f"g{i}": torch.tensor(row).float() for i, row in enumerate(scores)}
    found = allocate(values, space({name: len(row) for name, row in values.items()}), None, Quantile(q=q))
    for name, row in values.items():
        threshold = torch.tensor(row.tolist(), dtype=torch.float64).quantile(q)
        assert found.keep[name] == tuple(i for i, score in enumerate(row.tolist()) if score >= threshold)
    assert found.notes == ()


@SETTINGS
@given(score_lists, st.integers(1, 14))
def test_top_n_keeps_the_n_best(scores, n):
    values = {f"g{i}": torch.tensor(row).float() for i, row in enumerate(scores)}
    found = allocate(values, space({name: len(row) for name, row in values.items()}), None, TopN(n=n))
    for name, row in values.items():
        best = sorted(range(len(row)), key=lambda i: (-row[i].item(), i))
        assert list(found.keep[name]) == sorted(best[:n])


def test_a_budget_cuts_further_at_one_pace():
    values = {"a": torch.rand(100), "b": torch.rand(40)}
    found = allocate(values, space({"a": 100, "b": 40}), Budget(width=0.25), TopN(n=30))
    assert counts(found) == {"a": 18, "b": 17}
    assert found.achieved["width"] == 0.25


def test_a_budget_beyond_the_counts_says_who_stopped():
    found = allocate({"a": torch.rand(10)}, space({"a": 10}), Budget(width=0.8), TopN(n=5))
    assert counts(found) == {"a": 5}
    assert found.notes == ("width is 0.5000 where 0.8 was asked: the allocation method takes no further step.",)


def test_ties_and_multiples_take_the_larger_count():
    values = {"stream": torch.arange(64.0), "heads": torch.tensor([1.0, 2.0, 3.0, 3.0])}
    tied = space({"stream": 64, "heads": 4}, (("stream", "heads"),))
    assert counts(allocate(values, tied, None, TopN(n=3))) == {"stream": 48, "heads": 3}
    assert counts(allocate(values, space({"stream": 64, "heads": 4}), None, TopN(n=10, round_to=8)))["stream"] == 16


def test_the_order_of_a_curve_counts():
    path = ErrorCurve(torch.tensor([5.0, 1.0, 3.0, 0.0]), torch.tensor([2, 0, 1]))
    assert allocate({"a": path}, space({"a": 3}), None, TopN(n=2)).keep == {"a": (0, 2)}


def test_other_methods_need_a_budget():
    with pytest.raises(ConfigError, match=r"Method 'uniform' takes a budget. Pass one, such as Budget\(macs=0.5\)"):
        allocate({"a": torch.rand(4)}, space({"a": 4}), None, Uniform())


def test_a_plan_without_a_budget():
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    made = secateur.plan(net, torch.zeros(1, 3), None, secateur.PruneConfig(method=TopN(n=3)))
    assert [len(g.keep) for g in made.groups] == [3]
    assert made.config["method"] == {"name": "top_n", "floor": 0.0, "round_to": 1, "n": 3}
    assert secateur.apply(net, made, inputs=torch.randn(2, 3))(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Quantile(q=1.0), r"q=1.0 is outside \[0, 1\)"),
        (lambda: TopN(n=0), "n=0 is not a positive integer"),
        (lambda: TopN(n=2.5), "n=2.5 is not a positive integer"),
    ],
)
def test_bad_settings_are_refused(build, text):
    with pytest.raises(ConfigError, match=text):
        build()


def test_every_kind_keeps_the_same_fraction_and_a_threshold_decides_within():
    """Heads with tiny scores keep as large a part as units with large ones; among units, the strong layer keeps all."""
    sizes = {"weak mlp": 100, "strong mlp": 100, "heads": 50, "more heads": 50}
    kinds = {"weak mlp": "mlp", "strong mlp": "mlp", "heads": "heads", "more heads": "heads"}
    scores = {name: torch.linspace(0.1, 0.2, size) for name, size in sizes.items()}
    scores["strong mlp"] = scores["strong mlp"] + 5
    scores["heads"] = scores["heads"] * 1e-3
    found = counts(allocate(scores, space(sizes, kinds=kinds), Budget(width=0.6), Isomorphic()))
    assert found == {"weak mlp": 20, "strong mlp": 100, "heads": 10, "more heads": 50}


def test_groups_of_one_kind_are_ranked_as_global_does():
    sizes = {"a": 20, "b": 30}
    scores = {name: torch.rand(size, generator=torch.Generator().manual_seed(size)) for name, size in sizes.items()}
    one, other = (allocate(scores, space(sizes), Budget(width=0.5), method()) for method in (Isomorphic, Global))
    assert one == other


def test_topologies_of_a_network():
    """Both inner widths are alike though their sizes differ; the residual stream is another kind."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
            self.up = nn.ModuleList([nn.Linear(8, 16), nn.Linear(8, 24)])
            self.down = nn.ModuleList([nn.Linear(16, 8), nn.Linear(24, 8)])

        def forward(self, x):
            x = self.stem(x)
            for up, down in zip(self.up, self.down, strict=True):
                x = x + down(up(x).relu())
            return self.head(x)

    groups = {g.size: topology(g) for g in secateur.trace(Net(), torch.zeros(1, 3)).prunable}
    assert groups[16] == groups[24] == "features: 1 bias 0, 1 producer 0, 1 reader 1"
    assert groups[8] == "embed: 3 bias 0, 3 producer 0, 3 reader 1"
