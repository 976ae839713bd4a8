"""A budget on a metric: the search ends at a budget that it tried and that meets it, and writes every try down."""

from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from secateur import Budget, CompressConfig, compress
from secateur.compression.config import MeasureConfig
from secateur.compression.search import RESOLUTION, search_budget
from secateur.data import ArrayDataset, DataSplits
from secateur.errors import ConfigError

QUICK = CompressConfig(finetune=None, measure=MeasureConfig(repeats=3, max_seconds=0.2))


@given(st.floats(0.02, 1), st.floats(0, 5), st.floats(0.01, 40))
def test_a_metric_that_only_falls_is_met_as_tightly_as_the_resolution_allows(highest, allowed, slope):
    def attempt(tried: Budget) -> tuple[float, float]:
        return 0.9 - slope / 100 * (1 - tried.macs), tried.macs

    found = search_budget(Budget(macs=highest, drop_points=allowed), 0.9, attempt)
    best = 1 - allowed / slope  # keeping less than that loses more than is allowed
    assert len(found.tries) <= 7
    if found.note:
        assert best > highest - 1e-6
        assert found.budget.macs == highest
    else:
        assert max(best, 0) - 1e-6 <= found.budget.macs <= max(best, 0) + RESOLUTION + 1e-6
    assert found.budget.drop_points is None


@given(st.lists(st.floats(0, 1), min_size=8, max_size=8), st.floats(0, 50))
def test_a_metric_that_jumps_about_still_ends_at_a_try_that_met_it(metrics, allowed):
    left = iter(metrics)
    found = search_budget(Budget(drop_points=allowed), 0.9, lambda tried: (next(left), tried.macs))
    for tried in found.tries:
        assert tried.drop_points == pytest.approx(100 * (0.9 - tried.metric))
        assert tried.is_met == (tried.drop_points <= allowed + 1e-9)
    met = [tried.macs for tried in found.tries if tried.is_met]
    assert found.budget.macs == (min(met) if met else 1.0)


def test_the_rest_of_the_budget_holds_in_every_try():
    seen = []
    search_budget(Budget(params=0.6, macs=0.5, drop_points=1), 0.9, lambda b: (seen.append(b) or 0.9, b.macs))
    assert seen[0] == Budget(params=0.6, macs=0.5)
    assert all(b.params == 0.6 and b.macs <= 0.5 for b in seen)


def test_a_rest_that_costs_too_much_already_is_said_after_one_try():
    found = search_budget(Budget(params=0.5, drop_points=1), 0.9, lambda b: (0.8, 0.6))
    assert found.note.startswith(
        "drop_points=1 is out of reach: with the rest of the budget, the metric is 10.00 points"
    )
    assert len(found.tries) == 1
    assert (found.budget.params, found.budget.macs) == (0.5, 1.0)


def test_below_the_floors_nothing_more_is_tried():
    """Nothing below a fifth can be reached, and a fifth is good enough."""
    found = search_budget(Budget(drop_points=1), 0.9, lambda tried: (0.9, max(0.2, tried.macs)))
    assert [tried.macs for tried in found.tries] == [0.5, 0.25, 0.125]
    assert found.budget.macs == 0.2


class Untouchable(ArrayDataset):
    """Counts how often it is read."""

    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


def splits() -> DataSplits:
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(1))
    y = (x.sum(1) > 0).long()
    return DataSplits(
        ArrayDataset(x[:30], y[:30]), ArrayDataset(x[30:60], y[30:60]), Untouchable(x[60:], y[60:]), ("a", "b")
    )


def net() -> nn.Module:
    torch.manual_seed(0)
    first, last = nn.Linear(4, 16, bias=False), nn.Linear(16, 2, bias=False)
    with torch.no_grad():  # two units decide; the others are noise that grows less and less
        first.weight.mul_(0.01 * torch.arange(16)[:, None])
        first.weight[0], first.weight[1] = 1.0, -1.0
        last.weight.mul_(0.01)
        last.weight[:, 0], last.weight[:, 1] = torch.tensor([-1.0, 1.0]), torch.tensor([1.0, -1.0])
    return nn.Sequential(first, nn.ReLU(), last)


def test_compress_searches_on_validation_data_and_reports_every_try(caplog):
    with caplog.at_level(logging.INFO, logger="secateur"):
        done = compress(net(), splits(), budget=Budget(drop_points=2), config=QUICK, progress=False)
    tries = done.report.tries
    assert done.report.budget == {"drop_points": 2}
    assert sum("points below dense" in record.message for record in caplog.records) == len(tries) >= 3
    assert done.report.pruned.macs == pytest.approx(min(t.kept for t in tries if t.is_met) * done.report.dense.macs)
    assert done.report.to_dict()["tries"][0].keys() == {"macs", "kept", "metric", "drop_points", "is_met"}
    assert "tried on validation data, MACs kept and points lost: 0.500 (0.00), " in str(done.report)
    assert not any("out of reach" in note for note in done.report.notes)
    assert done.report.seconds["search"] >= 0


def test_a_predicted_time_stands_beside_the_measured_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = compress(net(), splits(), budget=Budget(latency=0.9), config=QUICK, progress=False)
    (text,) = [note for note in done.report.notes if note.startswith("latency was predicted as")]
    assert f"measured as {1 / done.report.speedup:.3f} for a batch of 1" in text


def test_a_search_never_reads_the_test_part():
    class Stop(Exception):
        pass

    def metric(model: nn.Module) -> float:
        if model[0].out_features < 16:
            raise Stop
        return 1.0

    Untouchable.reads = 0
    with pytest.raises(Stop):
        compress(net(), splits(), budget=Budget(drop_points=2), config=QUICK, metric=metric, progress=False)
    assert Untouchable.reads <= 1  # `has_classes` looks at the form of one label


def test_without_labels_a_metric_must_be_given():
    x = torch.randn(20, 4)
    with pytest.raises(ConfigError, match="drop_points needs data with class labels"):
        compress(net(), x, budget=Budget(drop_points=2), config=QUICK, progress=False)
    done = compress(net(), x, budget=Budget(drop_points=2), config=QUICK, metric=lambda m: 1.0, progress=False)
    assert all(t.is_met for t in done.report.tries)
