"""The loop: it learns, repeats itself exactly, stops when it should, and says what is wrong."""

from __future__ import annotations

import io
import sys

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from secateur.data import ArrayDataset, load_data
from secateur.data.batches import logits_of
from secateur.errors import ConfigError, DataError, TrainError
from secateur.measure import evaluate
from secateur.models import digits_cnn, mlp
from secateur.train import Callback, History, ShiftFlip, TrainConfig, fit_
from secateur.train.config import make_optimizer
from secateur.train.schedule import EpochBatches, cosine_lr


def blobs(n: int = 60, seed: int = 0) -> ArrayDataset:
    """Three classes of points in the plane, well apart."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    centres = torch.tensor([[4.0, 0.0], [-4.0, 4.0], [0.0, -4.0]])
    return ArrayDataset(centres[y] + torch.randn(n, 2, generator=g), y)


def tiny(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return mlp(2, hidden=(8,), n_classes=3)


def quick(**settings) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "batch_size": 16, "lr": 0.02, **settings})


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_bf16_computes_in_bfloat16_and_learns_in_float32():
    seen = set()

    class Watched(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            if self.training:
                seen.add(y.dtype)
            return y

    torch.manual_seed(0)
    model, losses = nn.Sequential(Watched(2, 8), nn.ReLU(), nn.Linear(8, 3)), set()

    def loss(outputs, batch):
        losses.add(found := nn.functional.cross_entropy(logits_of(outputs), batch[1]))
        return found

    history = fit_(model, blobs(), config=quick(epochs=20, precision="bf16"), loss=loss, progress=False)
    assert seen == {torch.bfloat16}
    assert {value.dtype for value in losses} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert history.last.train_loss < 0.1


@pytest.fixture
def images() -> ArrayDataset:
    torch.manual_seed(0)
    return ArrayDataset(torch.randn(48, 3, 8, 8), torch.randint(3, (48,)))


class Pictures(nn.Module):
    """A convolution that remembers how its images lay in memory, then a way to flatten what it gives."""

    def __init__(self, flatten):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head, self.flatten, self.seen = nn.Conv2d(3, 4, 3), nn.Linear(144, 3), flatten, set()

    def forward(self, x):
        if self.training:
            self.seen.add(x.is_contiguous(memory_format=torch.channels_last))
        return self.head(self.flatten(self.conv(x).relu()))


def test_channels_last_changes_where_numbers_lie_and_not_what_is_learnt(images):
    models = [Pictures(lambda t: t.flatten(1)) for _ in range(2)]
    for model, is_channels_last in zip(models, (False, True), strict=True):
        fit_(model, images, config=quick(is_channels_last=is_channels_last), progress=False)
        assert model.seen == {is_channels_last}
    for a, b in zip(weights(models[0]), weights(models[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_model_that_views_its_images_is_told_to_leave_them_as_they_lie(images):
    model = Pictures(lambda t: t.view(len(t), -1))
    with pytest.raises(TrainError, match="Set is_channels_last=False"):
        fit_(model, images, config=quick(is_channels_last=True), progress=False)


@pytest.mark.slow
def test_compiled_training_is_training():
    """Weights after three epochs, the last batch of each smaller, equal those of the same model run as it is."""
    plain, compiled = tiny(), tiny()
    losses = [
        fit_(model, blobs(), blobs(seed=1), quick(is_compiled=is_compiled), progress=False).last
        for model, is_compiled in ((plain, False), (compiled, True))
    ]
    for ours, wanted in zip(weights(compiled), weights(plain), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
    assert losses[1].val_loss == pytest.approx(losses[0].val_loss, rel=1e-4)
    assert type(compiled) is type(plain)
    assert list(compiled.state_dict()) == list(plain.state_dict())


@pytest.mark.slow
def test_what_the_compiler_gives_up_is_said_and_not_run_eagerly():
    torch.compiler.reset()  # programs of an equal model serve again
    with torch._dynamo.config.patch(recompile_limit=1), pytest.raises(TrainError, match="Set is_compiled=False"):
        fit_(tiny(), blobs(), config=quick(is_compiled=True), progress=False)  # batches of 16, then one of 12


def test_compiled_training_without_a_compiler_says_so(monkeypatch):
    from torch._inductor import cpp_builder, exc

    def missing(search=None):
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler here and found none"):
        fit_(tiny(), blobs(), config=quick(is_compiled=True), progress=False)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_loop_is_the_plain_loop(optimizer, clip):
    """Weights equal those of a loop written out, without Accelerate."""
    data, config = blobs(), quick(optimizer=optimizer, grad_clip=clip, label_smoothing=0.1)
    ours, plain = tiny(), tiny()
    fit_(ours, data, config=config)
    optimizer, order, step = make_optimizer(plain, config), EpochBatches(60, batch_size=16, seed=0), 0
    for epoch in (1, 2, 3):
        order.set_epoch(epoch)
        for indices in order:
            for group in optimizer.param_groups:
                group["lr"] = cosine_lr(step, 3 * len(order), lr=config.lr, warmup_fraction=0.05)
            x, y = data.fetch(indices)
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(x), y, label_smoothing=0.1).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(plain.parameters(), clip)
            optimizer.step()
            step += 1
    torch.testing.assert_close(weights(ours), weights(plain), rtol=0, atol=0)


class Dropped(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout = nn.Linear(64, 10), nn.Dropout(0.3)

    def forward(self, x):
        return self.linear(self.dropout(x.flatten(1)))


def test_seed_decides_everything():
    data = load_data("digits").val
    runs = []
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        model = Dropped()
        torch.manual_seed(noise)  # what ran before must not matter
        fit_(model, data, config=quick(seed=seed, augment=ShiftFlip(shift_px=1)))
        runs.append(model.linear.weight.detach())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_caller_gets_back_what_was_borrowed():
    torch.manual_seed(5)
    model, threads, before = tiny(), torch.get_num_threads(), torch.get_rng_state()
    keys = set(vars(model))
    fit_(model, blobs(), blobs(20, 1), quick(num_threads=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == threads
    assert not any(module.training for module in model.modules())
    assert set(vars(model)) == keys


def test_records_are_of_the_last_weights():
    model, val = tiny(), blobs(30, seed=1)
    history = fit_(model, blobs(), val, quick(label_smoothing=0.2))
    measured = evaluate(model, val)
    assert history.last.val_loss == pytest.approx(measured.loss, rel=1e-5)
    assert history.last.val_accuracy == pytest.approx(measured.accuracy)
    assert [r.epoch for r in history.epochs] == [1, 2, 3]
    assert not history.is_stopped_early


def test_frozen_parameters_stay():
    model = tiny()
    model.hidden.requires_grad_(False)
    before = weights(model)
    fit_(model, blobs(), config=quick())
    moved = [not torch.equal(a, b) for a, b in zip(before, weights(model), strict=True)]
    assert moved == [False, False, True, True]


def test_early_stop_counts_epochs_without_a_new_best():
    wrong = ArrayDataset(blobs().x, (blobs().y + 1) % 3)  # learning makes this ever worse
    model = tiny()
    fit_(model, blobs(), config=quick(epochs=2))
    history = fit_(model, blobs(), wrong, quick(epochs=50, patience=3))
    assert isinstance(history, History)
    assert history.is_stopped_early
    best = min(range(len(history.epochs)), key=lambda i: history.epochs[i].val_loss)
    assert len(history.epochs) == best + 1 + 3


class Zeros(Callback):
    def __init__(self):
        self.steps, self.records = [], []

    def on_step(self, model, step):
        self.steps.append(step)
        with torch.no_grad():
            model.linear.weight[:, 0] = 0

    def on_epoch(self, model, record):
        assert not model.linear.weight[:, 0].any()
        self.records.append(record)


def test_callbacks_see_every_step_and_may_keep_zeros():
    model, zeros = tiny(), Zeros()
    history = fit_(model, blobs(), config=quick(), callbacks=[zeros])
    assert zeros.steps == list(range(12))
    assert tuple(zeros.records) == history.epochs
    assert not model.linear.weight[:, 0].any()


class Keywords(Dataset):
    def __len__(self):
        return 60

    def __getitem__(self, i):
        x, y = blobs()[i]
        return {"x": x, "labels": y}


def test_dict_batches_train_like_pairs():
    pairs, dicts = tiny(), tiny()
    a = fit_(pairs, blobs(), blobs(), quick())
    b = fit_(dicts, Keywords(), Keywords(), quick())
    assert (a.last.val_loss, a.last.val_accuracy) == (b.last.val_loss, b.last.val_accuracy)
    torch.testing.assert_close(weights(pairs), weights(dicts), rtol=0, atol=0)
    with pytest.raises(ConfigError, match="these are dicts"):
        fit_(dicts, Keywords(), config=quick(augment=ShiftFlip()))


def test_a_loss_of_ones_own():
    model = tiny()
    history = fit_(model, blobs(), config=quick(), loss=lambda outputs, batch: outputs.square().mean())
    assert history.epochs[-1].train_loss < history.epochs[0].train_loss


class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.root, self.last = nn.Linear(2, 4), nn.Sequential(nn.ReLU(), Root()), nn.Linear(4, 3)
        self.calls = 0

    def forward(self, x):
        self.calls += self.training
        return self.last(self.root(self.first(x) if self.calls < 6 else self.first(x) - 100))


class Root(nn.Module):
    def forward(self, x):
        return x / x.amax()


def test_nan_names_epoch_step_and_module():
    with pytest.raises(TrainError, match=r"epoch 2, step 2 of 4 \(loss nan\).*is that of 'root\.1' \(Root\)"):
        fit_(Broken(), blobs(), config=quick())


def test_nan_in_data_and_weights_is_told_apart():
    data = blobs()
    data.x[7] = float("nan")
    with pytest.raises(TrainError, match=r"The data is not finite: x of this batch"):
        fit_(tiny(), data, config=quick())
    model = tiny()
    with torch.no_grad():
        model.linear.bias[0] = float("inf")
    with pytest.raises(TrainError, match=r"weights are no longer finite: linear\.bias \(1 in all\)"):
        fit_(model, blobs(), config=quick())


def test_weights_that_burst_at_the_last_step_are_noticed():
    class Burst(Callback):
        def on_step(self, model, step):
            if step == 11:
                with torch.no_grad():
                    model.linear.bias[0] = float("nan")

    with pytest.raises(TrainError, match="the end of epoch 3"):
        fit_(tiny(), blobs(), config=quick(), callbacks=[Burst()])


def test_what_does_not_fit_is_named_before_training():
    data, model = blobs(), tiny()
    with pytest.raises(TrainError, match="Flatten has no parameters"):
        fit_(nn.Flatten(), data)
    with pytest.raises(TrainError, match="has only frozen parameters"):
        fit_(tiny().requires_grad_(False), data)
    with pytest.raises(DataError, match=r"train data does not fit MLP.*holds no samples"):
        fit_(model, data.subset([]))
    with pytest.raises(DataError, match=r"val data does not fit MLP.*holds no samples"):
        fit_(model, data, data.subset([]))
    rgb = ArrayDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.long))
    with pytest.raises(DataError, match=r"train data does not fit DigitsCNN.*x \(2, 3, 8, 8\).*channels"):
        fit_(digits_cnn(width=2), rgb)
    with pytest.raises(DataError, match="Labels run from 0 to 2, but the model has 2 classes"):
        fit_(mlp(2, n_classes=2), data)
    with pytest.raises(ConfigError, match="patience=2 needs validation data"):
        fit_(model, data, config=quick(patience=2))


def test_bar_is_drawn_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, progress, is_drawn in (
        (io.StringIO(), True, False),
        (Terminal(), False, False),
        (Terminal(), True, True),
    ):
        monkeypatch.setattr(sys, "stderr", stream)
        fit_(tiny(), blobs(), config=quick(), progress=progress)
        assert bool(stream.getvalue()) == is_drawn


@pytest.mark.slow
def test_digits_reach_98_5_percent():
    splits = load_data("digits")
    torch.manual_seed(0)
    model = digits_cnn()
    config = TrainConfig(epochs=30, lr=3e-3, weight_decay=0.05, label_smoothing=0.1, augment=ShiftFlip(shift_px=1))
    fit_(model, splits.train, splits.val, config)
    assert evaluate(model, splits.test).accuracy >= 0.985
