"""Measurements agree with slow, obvious versions, and give back what they borrowed."""

from __future__ import annotations

import gc
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from secateur.data import ArrayDataset
from secateur.errors import ConfigError, DataError
from secateur.measure import (
    agreement,
    count_parameters,
    evaluate,
    latency,
    paired_latency,
    predict,
    score_logits,
    size_bytes,
    unique_state,
)
from secateur.models import cifar_resnet20, digits_cnn


def macro(labels, guesses):
    """Precision, recall and F1 per class that occurs, 0 where undefined, then the plain mean."""
    rows = []
    for c in sorted(set(labels) | set(guesses)):
        hit = sum(a == b == c for a, b in zip(labels, guesses, strict=True))
        said, is_c = guesses.count(c), labels.count(c)
        p, r = hit / said if said else 0.0, hit / is_c if is_c else 0.0
        rows.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=50, deadline=None)
def test_metrics_are_the_plain_ones(pairs):
    labels, guesses = [a for a, _ in pairs], [b for _, b in pairs]
    logits = nn.functional.one_hot(torch.tensor(guesses), 4).float()
    m = score_logits(logits, torch.tensor(labels))
    assert [m.precision, m.recall, m.f1] == pytest.approx(macro(labels, guesses))
    assert m.accuracy == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    assert m.n_samples == len(pairs)
    expected = -torch.stack([row.log_softmax(0)[y] for row, y in zip(logits, labels, strict=True)]).mean()
    assert m.loss == pytest.approx(expected.item(), abs=1e-5)


def digits_like(n=50):
    g = torch.Generator().manual_seed(0)
    return ArrayDataset(torch.randn(n, 1, 8, 8, generator=g), torch.arange(n) % 10)


def test_batch_size_changes_nothing_and_modes_come_back():
    torch.manual_seed(0)
    model = digits_cnn(width=4).train()
    model.block1.eval()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    small, large = predict(model, digits_like(), batch_size=7), predict(model, digits_like(), batch_size=50)
    torch.testing.assert_close(small, large)
    assert [m.training for m in model.modules()] == modes
    torch.testing.assert_close(dict(model.state_dict()), state, rtol=0, atol=0)
    assert not small[0].is_inference()


def test_predict_keeps_the_order():
    data = digits_like()
    logits, labels = predict(nn.Flatten(), data, batch_size=8)
    assert torch.equal(logits, data.x.flatten(1))
    assert torch.equal(labels, data.y)


def test_agreement_with_itself_is_one():
    a = torch.randn(9, 3)
    assert agreement(a, a * 2 + 1) == 1
    with pytest.raises(DataError, match=r"\(9, 3\) and \(8, 3\) cannot be compared"):
        agreement(a, a[:8])


def test_misfits_are_named():
    with pytest.raises(DataError, match=r"CifarResNet cannot take a batch \(50, 1, 8, 8\)"):
        evaluate(cifar_resnet20(), digits_like())
    with pytest.raises(DataError, match="run from 0 to 9, but the model has 5 classes"):
        evaluate(digits_cnn(width=2, n_classes=5), digits_like())
    with pytest.raises(DataError, match=r"Logits \(2, 3, 4\)"):
        score_logits(torch.zeros(2, 3, 4), torch.zeros(2))


class Mixed(nn.Module):
    """Tied weights, a view, an empty tensor, a scalar, several dtypes, a name that JSON writes as itself."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.head = nn.Linear(3, 7, bias=False)
        self.head.weight = self.embed.weight
        for i, dtype in enumerate([torch.bool, torch.uint8, torch.int8, torch.float16, torch.bfloat16, torch.float64]):
            self.register_buffer(f"b{i}", torch.zeros(i, 3, dtype=dtype))
        self.register_buffer("ß", torch.tensor(5))
        self.register_buffer("i32", torch.arange(3, dtype=torch.int32))
        self.register_buffer("view", self.i32[1:])
        self.register_buffer("scratch", torch.zeros(100), persistent=False)


@pytest.mark.parametrize("build", [Mixed, digits_cnn, cifar_resnet20, nn.ReLU, lambda: nn.Linear(3, 3).bfloat16()])
def test_size_is_that_of_the_saved_file(build, tmp_path):
    model = build()
    save_file({k: t.clone() for k, t in unique_state(model).items()}, tmp_path / "m.safetensors")
    assert size_bytes(model) == (tmp_path / "m.safetensors").stat().st_size


def test_tied_tensors_count_once_on_any_device():
    model = Mixed()
    assert "head.weight" not in unique_state(model)
    assert count_parameters(model) == 21
    with torch.device("meta"):
        assert size_bytes(digits_cnn()) == size_bytes(digits_cnn().to("meta"))
    assert size_bytes(digits_cnn().to("meta")) == size_bytes(digits_cnn())


def test_frozen_parameters_can_be_left_out():
    model = nn.Linear(4, 4)
    model.bias.requires_grad_(False)
    assert (count_parameters(model), count_parameters(model, trainable_only=True)) == (20, 16)


def test_size_refuses_what_cannot_be_stored():
    model = nn.Module()
    model.register_buffer("z", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(DataError, match=r"z \(torch.complex128\)"):
        size_bytes(model)


class Sleeper(nn.Module):
    def __init__(self, seconds):
        super().__init__()
        self.seconds, self.calls = seconds, 0

    def forward(self, x, *, y=None):
        self.calls += 1
        assert not self.training
        assert torch.is_inference_mode_enabled()
        time.sleep(self.seconds)
        return x


def test_latency_measures_time_and_gives_everything_back():
    model, threads = Sleeper(0.004).train(), torch.get_num_threads()
    timed = latency(model, torch.zeros(3, 2), repeats=9, warmup=2, n_threads=2)
    assert model.calls == 11
    assert 4 <= timed.min_ms <= timed.p25_ms <= timed.median_ms <= timed.p75_ms
    assert timed.median_ms < 40
    assert (timed.batch_size, timed.repeats, timed.n_threads, timed.dtype) == (3, 9, 2, "float32")
    assert model.training
    assert torch.get_num_threads() == threads
    assert gc.isenabled()


@pytest.mark.parametrize("inputs", [(torch.zeros(5, 2),), {"x": torch.zeros(5, 2), "y": None}])
def test_latency_takes_tuples_and_dicts(inputs):
    assert latency(Sleeper(0), inputs, repeats=1, warmup=0).batch_size == 5


def test_paired_latency_gives_the_ratio():
    pair = paired_latency(Sleeper(0.12), Sleeper(0.04), torch.zeros(1), repeats=7, warmup=1)
    assert 2 < pair.speedup < 3.2
    assert pair.speedup_p25 <= pair.speedup <= pair.speedup_p75
    assert pair.dense.median_ms > pair.small.median_ms


def test_failing_models_leave_no_trace():
    model = nn.Linear(2, 2).train()
    with pytest.raises(RuntimeError):
        latency(model, torch.zeros(1, 3), n_threads=1)
    assert model.training
    assert gc.isenabled()


def test_repeats_must_be_positive():
    with pytest.raises(ConfigError, match="repeats=0"):
        latency(nn.Identity(), torch.zeros(1), repeats=0)
