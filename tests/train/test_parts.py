"""The parts of training that need no training: settings, schedule, order, augmentation, losses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from secateur.errors import ConfigError, DataError
from secateur.train import EpochBatches, ShiftFlip, TrainConfig, WordDropout, compute_loss, cosine_lr, cross_entropy
from secateur.train.config import make_optimizer


def test_config_survives_json():
    config = TrainConfig(epochs=3, augment=ShiftFlip(shift_px=2, flip=True), patience=4, grad_clip=0.5)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"epochs": 0, "lr": -1.0}, "epochs=0, lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"optimizer": "adagrad"}, r"No optimizer 'adagrad'\. Known: adamw, sgd"),
        ({"epoch": 3}, "Unknown training settings: epoch"),
        ({"augment": {"kind": "blur"}}, r"No augmentation 'blur'\. Known: shift_flip"),
        ({"augment": {"kind": "shift_flip", "px": 1}}, r"does not take \['px'\]"),
        ({"augment": {"kind": "shift_flip", "shift_px": -1}}, "shift_px=-1 is negative"),
    ],
)
def test_wrong_settings_are_named(values, text):
    with pytest.raises(ConfigError, match=text):
        TrainConfig.from_dict(values)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_norms_and_biases_are_not_decayed(name):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    groups = make_optimizer(model, TrainConfig(optimizer=name, weight_decay=0.3)).param_groups
    assert [(g["weight_decay"], len(g["params"])) for g in groups] == [(0.3, 1), (0.0, 3)]


@given(st.integers(2, 200), st.floats(0, 0.9))
@settings(max_examples=40, deadline=None)
def test_learning_rate_rises_then_falls_to_nearly_nothing(n_steps, fraction):
    rates = [cosine_lr(s, n_steps, lr=2.0, warmup_fraction=fraction) for s in range(n_steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(0 < rate <= 2.0 for rate in rates)
    assert max(rates) == pytest.approx(2.0)


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_epoch_has_each_sample_once(n_samples, batch_size, epoch):
    order = EpochBatches(n_samples, batch_size=batch_size, seed=1)
    order.set_epoch(epoch)
    batches = list(order)
    seen = [i for batch in batches for i in batch]
    assert len(batches) == len(order)
    assert len(set(seen)) == len(seen)
    is_rest_left_out = n_samples % batch_size == 1 and n_samples > 1 and batch_size > 1
    assert len(seen) == n_samples - is_rest_left_out
    assert list(order) == batches


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = set()
    for seed in range(3):
        for epoch in range(3):
            order = EpochBatches(20, batch_size=20, seed=seed)
            order.set_epoch(epoch)
            orders.add(tuple(next(iter(order))))
    assert len(orders) == 9


def test_shift_moves_whole_images_and_fills_with_zeros():
    x = torch.rand(40, 2, 5, 6) + 1
    out = ShiftFlip(shift_px=1)(x, torch.Generator().manual_seed(0))
    padded = F.pad(x, [1] * 4)
    seen = set()
    for before, after in zip(padded, out, strict=True):
        places = [(i, j) for i in range(3) for j in range(3) if torch.equal(before[:, i : i + 5, j : j + 6], after)]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


def test_flip_mirrors_about_half():
    x = torch.rand(200, 1, 3, 4)
    out = ShiftFlip(shift_px=0, flip=True)(x, torch.Generator().manual_seed(0))
    mirrored = [torch.equal(b, a.flip(-1)) for a, b in zip(x, out, strict=True)]
    assert all(m or torch.equal(a, b) for m, a, b in zip(mirrored, x, out, strict=True))
    assert 70 < sum(mirrored) < 130


def test_shift_needs_images():
    with pytest.raises(DataError, match=r"x is \(3, 4\)"):
        ShiftFlip()(torch.zeros(3, 4), torch.Generator())


def test_word_dropout_makes_words_unknown_and_leaves_padding():
    x = torch.tensor([[2, 3, 4, 5, 0]]).repeat(500, 1)
    out = WordDropout(p=0.25)(x, torch.Generator().manual_seed(0))
    assert ((out == x) | (out == 1)).all()
    assert (out[:, 4] == 0).all()
    assert 0.2 < (out[:, :4] == 1).float().mean() < 0.3
    with pytest.raises(DataError, match=r"x is torch\.float32"):
        WordDropout()(torch.zeros(3, 4), torch.Generator())
    with pytest.raises(ConfigError, match=r"p=1\.0 is outside"):
        WordDropout(p=1.0)


def test_cross_entropy_takes_sequences():
    logits, labels = torch.randn(2, 3, 5), torch.randint(5, (2, 3))
    expected = -torch.stack([logits[i, j].log_softmax(0)[labels[i, j]] for i in range(2) for j in range(3)]).mean()
    torch.testing.assert_close(cross_entropy(logits, (logits, labels)), expected)


class OwnLoss(nn.Module):
    def forward(self, x, labels=None):
        logits = torch.stack([x, -x], 1)
        return SimpleNamespace(logits=logits, loss=None if labels is None else torch.tensor(7.0))


def test_a_model_that_computes_its_loss_decides_unless_told_otherwise():
    batch = {"x": torch.ones(3), "labels": torch.zeros(3, dtype=torch.long)}
    assert compute_loss(OwnLoss(), batch, None)[0] == 7
    ours, outputs = compute_loss(OwnLoss(), batch, lambda outputs, batch: outputs.logits.sum() + 3)
    assert ours == 3
    assert outputs.loss is None
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.1 has no effect"):
        compute_loss(OwnLoss(), batch, None, label_smoothing=0.1)
