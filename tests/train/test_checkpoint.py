"""Checkpoints: a killed run goes on to the same weights, bit for bit; what is no checkpoint of the run is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from secateur.data import ArrayDataset
from secateur.errors import FileError, TrainError
from secateur.train import Callback, ShiftFlip, TrainConfig, fit_

WORKER = """
import sys, time, torch
sys.path.insert(0, sys.argv[2])
from test_checkpoint import CONFIG, Net, data
from secateur.train import Callback, fit_

class Slow(Callback):
    def on_step(self, model, step):
        time.sleep(0.05)

fit_(Net(), data(), data(), CONFIG, checkpoint=sys.argv[1], callbacks=[Slow()])
"""


class Net(nn.Module):
    """All that resuming must get right: batch norm's buffers, dropout's random numbers, tied weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.bn, self.dropout = nn.BatchNorm2d(4), nn.Dropout(0.2)
        self.inner = nn.Linear(4, 4, bias=False)
        self.tied = nn.Linear(4, 4, bias=False)
        self.tied.weight = self.inner.weight
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        x = self.dropout(self.bn(self.conv(x)).relu().mean((2, 3)))
        return self.linear(self.tied(self.inner(x).relu()))


def data() -> ArrayDataset:
    x = torch.randn(40, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    return ArrayDataset(x, torch.arange(40) % 3)


CONFIG = TrainConfig(epochs=6, batch_size=10, lr=0.01, augment=ShiftFlip(shift_px=1), num_threads=1)


class Stop(Callback):
    def __init__(self, epoch: int):
        self.epoch = epoch

    def on_step(self, model, step):
        if step == self.epoch * 4 + 2:
            raise KeyboardInterrupt


def interrupted(path: Path, epoch: int = 3, config: TrainConfig = CONFIG) -> Path:
    with pytest.raises(KeyboardInterrupt):
        fit_(Net(), data(), data(), config, checkpoint=path, callbacks=[Stop(epoch)])
    return path


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(u, v) for u, v in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("every", [1, 2])
def test_resumed_run_ends_with_the_same_bits(tmp_path, optimizer, every):
    config = TrainConfig.from_dict({**CONFIG.to_dict(), "optimizer": optimizer, "checkpoint_every": every})
    whole, resumed = Net(), Net()
    expected = fit_(whole, data(), data(), config)
    path = interrupted(tmp_path / "run.safetensors", 3, config)
    history = fit_(resumed, data(), data(), config, checkpoint=path)
    assert same(whole, resumed)
    assert history.resumed_from == 3 - 3 % every
    assert [r.val_loss for r in history.epochs] == [r.val_loss for r in expected.epochs]
    assert [r.train_loss for r in history.epochs] == [r.train_loss for r in expected.epochs]


@pytest.mark.slow
def test_killed_process_resumes_to_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    arguments = [sys.executable, "-c", WORKER, str(path), str(Path(__file__).parent)]
    worker = subprocess.Popen(arguments, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    try:
        deadline = time.monotonic() + 60
        while not path.exists() and worker.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.1)  # into the middle of a later epoch
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert worker.returncode == -signal.SIGKILL
    whole, resumed = Net(), Net()
    fit_(whole, data(), data(), CONFIG)
    history = fit_(resumed, data(), data(), CONFIG, checkpoint=path)
    assert 1 <= history.resumed_from < 6
    assert same(whole, resumed)


def test_finished_run_is_only_read(tmp_path):
    first, second = Net(), Net()
    path = tmp_path / "deep" / "run.safetensors"
    history = fit_(first, data(), data(), CONFIG, checkpoint=path)
    written = path.read_bytes()
    again = fit_(second, data(), data(), CONFIG, checkpoint=path)
    assert again.epochs == history.epochs
    assert again.resumed_from == 6
    assert same(first, second)
    assert path.read_bytes() == written
    assert [p.name for p in path.parent.iterdir()] == ["run.safetensors"]


def test_early_stop_survives_a_resume(tmp_path):
    config = TrainConfig(epochs=40, batch_size=10, lr=0.1, patience=2, num_threads=1)
    whole, resumed = Net(), Net()
    expected = fit_(whole, data(), data(), config)
    assert expected.is_stopped_early
    path = interrupted(tmp_path / "run.safetensors", 1, config)
    history = fit_(resumed, data(), data(), config, checkpoint=path)
    assert len(history.epochs) == len(expected.epochs)
    assert same(whole, resumed)
    assert fit_(Net(), data(), data(), config, checkpoint=path).is_stopped_early


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = interrupted(tmp_path / "run.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError, match="could not be written: no space left"):
        fit_(Net(), data(), data(), CONFIG, checkpoint=path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_really_full_disk(small_disk):
    wide, points = nn.Linear(100, 100), torch.randn(4, 100)
    with pytest.raises(FileError, match=r"No space left on device.*Free some space"):
        fit_(
            wide,
            ArrayDataset(points, torch.arange(4)),
            config=TrainConfig(epochs=1, batch_size=4),
            checkpoint=small_disk / "run",
        )
    assert list(small_disk.iterdir()) == []


def test_another_run_is_refused(tmp_path):
    path = interrupted(tmp_path / "run.safetensors")
    other = TrainConfig.from_dict({**CONFIG.to_dict(), "lr": 0.5, "num_threads": None})
    with pytest.raises(TrainError, match=r"another run: lr was 0\.01 and is 0\.5\."):
        fit_(Net(), data(), data(), other, checkpoint=path)
    with pytest.raises(TrainError, match="had 40 samples and has 39"):
        fit_(Net(), data().subset(range(39)), data(), CONFIG, checkpoint=path)
    wider = Net()
    wider.linear = nn.Linear(4, 5)
    with pytest.raises(TrainError, match=r"2 entries differ, first \['linear.bias', 'linear.weight'\]"):
        fit_(wider, data(), data(), CONFIG, checkpoint=path)


@pytest.mark.parametrize("n_bytes", [0, 5, 100, -1])
def test_cut_files_are_named(tmp_path, n_bytes):
    path = interrupted(tmp_path / "run.safetensors")
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(FileError, match="cannot be read"):
        fit_(Net(), data(), data(), CONFIG, checkpoint=path)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "is no checkpoint of Secateur"),
        ("{", "is no checkpoint of Secateur"),
        ("[]", "is no checkpoint of Secateur"),
        ('{"version": 99}', "version 99; this Secateur reads version 1"),
        ('{"version": 1}', "no whole checkpoint"),
        ('{"version": 1, "optimizer": {}, "config": {}, "n_samples": 40, "epochs": [{}]}', "no whole checkpoint"),
    ],
)
def test_foreign_headers_are_named(tmp_path, text, error):
    path = interrupted(tmp_path / "run.safetensors")
    save_file(load_file(path), path, metadata=None if text is None else {"secateur": text})
    model = Net()
    with pytest.raises(FileError, match=error):
        fit_(model, data(), data(), CONFIG, checkpoint=path)
    assert same(model, Net())


def test_header_is_strict_json(tmp_path):
    path = interrupted(tmp_path / "run.safetensors")
    raw = path.read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    scalars = json.loads(header["__metadata__"]["secateur"])
    assert scalars["config"] == CONFIG.to_dict()
    assert [r["epoch"] for r in scalars["epochs"]] == [1, 2, 3]
