"""Predicted latency: operators are rebuilt rightly, times are interpolated and kept, budgets on time are met."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.dims.algebra import count
from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.measure import prediction
from secateur.measure.cache import TimeCache
from secateur.measure.operators import MAX_KNOBS, SyntheticOp, synthetic_ops
from secateur.measure.prediction import Grid, predict_latency
from secateur.models import digits_cnn

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class Mixed(nn.Module):
    """Groups, depthwise, group and layer norm, attention, a concatenation, an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 16)
        self.attention = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        self.conv = nn.Conv1d(16, 12, 3, groups=4, padding=1)
        self.norm = nn.GroupNorm(2, 12)
        self.depthwise = nn.Conv1d(12, 12, 1, groups=12)
        self.head = nn.Linear(28, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.words(x)).transpose(1, 2)
        y = self.depthwise(self.norm(self.conv(x))).relu_()
        return self.head(torch.cat([x.mean(2), y.amax(2)], 1))


NETS = {"digits": (digits_cnn, torch.zeros(2, 1, 8, 8)), "mixed": (Mixed, torch.zeros(2, 5, dtype=torch.long))}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("n", [1, 2, 1000])
def test_synthetic_operators_give_the_shapes_of_the_smaller_network(name, n):
    """At any counts, each operator runs by itself and gives what the dimensions say."""
    build, x = NETS[name]
    graph = trace(build(), x)
    for op in synthetic_ops(graph.solution):
        assert len(op.knobs) <= MAX_KNOBS
        counts = {leaf: min(n, leaf.size) for knob in op.knobs for leaf in knob.leaves}
        out = op.call(counts, CPU)()
        outs = out if isinstance(out, tuple | list) else (out,)
        for value, tensor in zip(op.op.outputs, outs, strict=True):
            if value is not None:
                assert tuple(tensor.shape) == tuple(count(d, counts) for d in graph.solution.axes(value))
                assert tensor.dtype == value.dtype


def test_views_are_no_operators_to_time():
    names = {str(op.op.target) for op in synthetic_ops(trace(Mixed(), NETS["mixed"][1]).solution)}
    assert names >= {
        "aten.convolution.default",
        "aten.cat.default",
        "aten.relu_.default",
        "aten.native_layer_norm.default",
    }
    assert not any(word in name for name in names for word in ("view", "transpose", "unsqueeze", "aten.t."))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_grids_interpolate_and_never_fall(data):
    steps = [sorted(data.draw(st.sets(st.integers(1, 20), min_size=1, max_size=4))) for _ in range(2)]
    times = np.array([[data.draw(st.floats(0.1, 9)) for _ in steps[1]] for _ in steps[0]])
    grid = Grid(steps, times)
    for (i, a), (j, b) in product(enumerate(steps[0]), enumerate(steps[1])):
        assert grid([a, b]) == pytest.approx(times[: i + 1, : j + 1].max())  # at its points: the envelope
    a, b = data.draw(st.integers(1, 22)), data.draw(st.integers(1, 22))
    assert grid([a, b]) <= grid([a + 1, b]) + 1e-9
    assert grid([a, b]) <= grid([a, b + 1]) + 1e-9


def test_a_prediction_is_the_dense_time_at_full_widths_and_never_falls_with_a_count():
    model, x = digits_cnn(), torch.zeros(2, 1, 8, 8)
    graph = trace(model, x)
    graph.latency = predicted = predict_latency(model, x, graph, repeats=3)
    assert graph.cost().latency_ms == pytest.approx(predicted.dense.median_ms)
    assert not predicted.untimed
    rng = np.random.default_rng(0)
    for _ in range(20):
        counts = {g.name: int(rng.integers(1, g.size + 1)) for g in graph.prunable}
        fewer = {name: int(rng.integers(1, n + 1)) for name, n in counts.items()}
        assert graph.cost(fewer).latency_ms <= graph.cost(counts).latency_ms <= predicted.dense.median_ms * (1 + 1e-9)


@pytest.mark.slow
def test_times_are_kept_for_the_next_process(monkeypatch):
    model, x = digits_cnn(width=8), torch.zeros(1, 1, 8, 8)
    graph = trace(model, x)
    first = predict_latency(model, x, graph, repeats=3)
    kept = json.loads(TimeCache(CPU).path.read_text())
    assert kept["machine"]["torch"] == torch.__version__
    assert kept["machine"]["threads"] == str(torch.get_num_threads())

    def fail(*args, **kwargs):
        raise AssertionError("timed again")

    monkeypatch.setattr(prediction, "_time", fail)
    assert predict_latency(model, x, graph, repeats=3).sum_ms == first.sum_ms


@pytest.mark.parametrize("text", ["", "[]", '{"machine": {}, "ms": {}}', '{"ms": 3}', '{"machine": null}'])
def test_a_file_that_is_not_of_this_machine_is_not_used(text):
    cache = TimeCache(CPU)
    cache.times["mm"] = 3.0
    cache.save()
    assert TimeCache(CPU).times == {"mm": 3.0}
    cache.path.write_text(text)
    assert TimeCache(CPU).times == {}


def test_an_operator_that_cannot_run_alone_is_named(monkeypatch):
    """As one would that refuses made-up values. Its share is spread over the others."""
    call = SyntheticOp.call

    def refuse(self, counts, device):
        if "relu" in str(self.op.target):
            raise RuntimeError("not these values")
        return call(self, counts, device)

    monkeypatch.setattr(SyntheticOp, "call", refuse)
    model, x = digits_cnn(width=8), torch.zeros(1, 1, 8, 8)
    graph = trace(model, x)
    found = predict_latency(model, x, graph, repeats=3)
    assert {where.split()[0] for where in found.untimed} == {"aten.relu.default"}
    assert "operators could not be timed" in str(found)
    assert found({g.leaf: 2 for g in graph.prunable}) < found({}) == pytest.approx(found.dense.median_ms)


@pytest.mark.slow
def test_a_budget_on_time_is_met_and_says_where_it_comes_from():
    model, x = digits_cnn(width=64), torch.zeros(4, 1, 8, 8)
    made = secateur.plan(
        model, x, secateur.Budget(latency=0.6), secateur.PruneConfig(method=secateur.Uniform(floor=0.0))
    )
    kept = made.cost_after.latency_ms / made.cost_before.latency_ms
    assert 0.58 <= kept <= 0.6
    assert [note for note in made.notes if note.startswith("latency is predicted from")]
    assert secateur.Plan.from_json(made.to_json()) == made


def test_the_meta_device_has_no_time():
    model = digits_cnn().to("meta")
    x = torch.zeros(1, 1, 8, 8)
    with pytest.raises(ConfigError, match="on the meta device takes no time"):
        predict_latency(model, x, trace(model, x))
