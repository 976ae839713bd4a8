"""A folder is there whole or not at all: on full disks, after Ctrl-C, after SIGKILL at any moment."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import secateur
from secateur.errors import FileError
from secateur.files import atomic, saving
from secateur.files.loading import open_folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def made(cnn):
    return cnn.pruned()


def test_an_existing_folder_is_an_error_unless_overwritten(made, tmp_path):
    small, plan = made
    target = secateur.save(small, tmp_path / "small", plan=plan)
    before = everything(tmp_path)
    with pytest.raises(FileError, match=r"exists.*overwrite=True, --force"):
        secateur.save(small, target, plan=plan)
    assert everything(tmp_path) == before
    secateur.save(small, target, plan=plan, recipe="a = 1\n", overwrite=True)
    assert everything(tmp_path).keys() - before.keys() == {"small/recipe.toml"}
    assert os.listdir(tmp_path) == ["small"]


def test_overwriting_spares_what_secateur_did_not_write(made, tmp_path):
    small, plan = made
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("meow")
    with pytest.raises(FileError, match="no saved model, so it isn't overwritten"):
        secateur.save(small, tmp_path / "photos", plan=plan, overwrite=True)
    target = secateur.save(small, tmp_path / "small", plan=plan)
    (target / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"also holds 'notes.txt'"):
        secateur.save(small, target, plan=plan, overwrite=True)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(FileError, match="is not a folder"):
        secateur.save(small, tmp_path / "link", plan=plan, overwrite=True)
    (tmp_path / "empty").mkdir()
    secateur.save(small, tmp_path / "empty", plan=plan, overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["write_tensors", "entry_of", "flush", "_put_in_place"])
@pytest.mark.parametrize("is_old", [True, False], ids=["old", "new"])
def test_failures_leave_what_was_there(made, tmp_path, monkeypatch, error, step, is_old):
    small, plan = made
    target = tmp_path / "runs" / "small"
    if is_old:
        secateur.save(small, target, plan=plan)
    before = everything(tmp_path)

    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(saving if hasattr(saving, step) else atomic, step, fail)
    expected = FileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        secateur.save(small, target, plan=plan, recipe="new = 1\n", overwrite=True)
    assert expected is KeyboardInterrupt or "No space left on device" in str(caught.value)
    assert everything(tmp_path) == before
    assert [p.name for p in tmp_path.iterdir()] == (["runs"] if is_old else [])


def test_without_an_atomic_exchange_the_old_folder_survives_a_failure(made, tmp_path, monkeypatch):
    small, plan = made
    monkeypatch.setattr(atomic, "_rename_flagged", lambda *_: False)
    target = secateur.save(small, tmp_path / "small", plan=plan)
    secateur.save(small, target, plan=plan, recipe="a = 1\n", overwrite=True)
    assert os.listdir(tmp_path) == ["small"]
    before = everything(tmp_path)
    rename = Path.rename

    def fail(self, to):
        if self.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(FileError, match="Input/output error"):
        secateur.save(small, target, plan=plan, overwrite=True)
    assert everything(tmp_path) == before


def test_a_really_full_disk(made, small_disk):
    small, plan = made
    with pytest.raises(FileError, match=r"No space left on device.*Free some space"):
        secateur.save(small, small_disk / "small", plan=plan)
    assert list(small_disk.iterdir()) == []


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "new folder" / "file"

    def write(text: str, *, stops: bool = False) -> None:
        with atomic.new_file(target) as partial:
            partial.write_text(text)
            if stops:
                raise KeyboardInterrupt

    write("old")
    with pytest.raises(KeyboardInterrupt):
        write("ne", stops=True)
    assert (target.read_text(), os.listdir(target.parent)) == ("old", ["file"])
    write("new")
    assert (target.read_text(), os.listdir(target.parent)) == ("new", ["file"])


SAVE_FOR_EVER = """
import sys, torch, secateur
from secateur.models import digits_cnn
torch.manual_seed(0)
model, x = digits_cnn(width=8), torch.ones(1, 1, 8, 8)
plan = secateur.plan(model, x, secateur.Budget(width=0.5))
small = secateur.apply(model, plan)
print("ready", flush=True)
for i in range(10**9):
    secateur.save(small, sys.argv[1], plan=plan, recipe=f"run = {i}\\n", overwrite=True)
"""


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_a_whole_folder(cnn, tmp_path):
    target = tmp_path / "small"
    for i in range(3):
        process = subprocess.Popen([sys.executable, "-c", SAVE_FOR_EVER, str(target)], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.06 * i)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        if target.exists():
            open_folder(target, cnn.build)
    secateur.save(*cnn.pruned()[:1], target, plan=cnn.pruned()[1], overwrite=True)
    assert os.listdir(tmp_path) == ["small"], "what the killed processes left is cleaned up"
