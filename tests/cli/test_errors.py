"""What goes wrong is one clear message on stderr, exit code 1, no traceback, and nothing half written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import secateur
from secateur.models import digits_cnn

CNN = "builtin:digits_cnn?width=8"
MACS = ("--budget", "macs=0.5")


def check(result, *words):
    assert result.code == 1, result
    assert result.out == ""
    assert "Traceback" not in result.err
    assert result.err.count("secateur: error: ") == 1
    for word in words:
        assert word in result.err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((CNN, *MACS, "--criterion", "l3"), ("No criterion 'l3'", "Known: activation_cosine, ")),
        ((CNN, *MACS, "--method", "best"), ("No allocation method 'best'", "global")),
        ((CNN, *MACS, "--criterion", "taylor"), ("needs labelled data",)),
        ((CNN, "--budget", ""), ("An empty budget", "width, params, macs")),
        ((CNN, "--budget", "flops=0.5"), ("'flops=0.5' is no budget",)),
        ((CNN, "--budget", "macs=half"), ("'half' is no number",)),
        ((CNN, "--budget", "macs=1.5"), ("outside (0, 1]",)),
        ((CNN, *MACS, "--input-shape", "1,3,8,8"), ("The forward of DigitsCNN failed in", "shape [1, 3, 8, 8]")),
        ((CNN, *MACS, "--input-shape", "1,x"), ("is no shape",)),
        ((CNN, *MACS, "--ignore", "*"), ("Nothing in this model can be pruned", "ignore pattern")),
        ((CNN, *MACS, "--data", "digitz"), ("No data source 'digitz'",)),
        (("resnet18", *MACS), ("no model source", "torchvision:")),
        (("torchvision:resnet19", *MACS), ("torchvision has no model 'resnet19'", "resnet18")),
        (("timm:resnet", *MACS), ("timm has no model 'resnet'",)),
        (("builtin:digits_cnn?depth=3", *MACS), ("takes no 'depth'", "width")),
        (("builtin:digits_cnn?width=wide", *MACS), ("width=wide is no Python literal",)),
        (("python:nowhere_at_all:fn", *MACS), ("no module 'nowhere_at_all'",)),
        (("python:torch.nn:Identity", *MACS), ("has no parameters",)),
        (("torchvision:resnet18?weights='DEFAULT'", *MACS), ("would read or download",)),
    ],
    ids=lambda value: " ".join(map(str, value))[:40],
)
def test_prune_refuses(run, tmp_path, args, words):
    check(run("prune", *args, "--output", tmp_path / "out"), *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["stem.weight", "block2.bn1.running_var"])
def test_nan_weights(run, tmp_path, name):
    state = digits_cnn(width=8).state_dict()
    state[name].flatten()[0] = float("nan")
    save_file(state, tmp_path / "w.safetensors")
    result = run("prune", CNN, *MACS, "--weights", tmp_path / "w.safetensors", "--output", tmp_path / "out")
    check(result, "holds NaN or Inf in", name)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_none(run, tmp_path):
    torch.save({}, tmp_path / "w.pt")
    check(run("inspect", CNN, "--weights", tmp_path / "w.pt"), "Pickles are never read")
    (tmp_path / "w.safetensors").write_bytes(b"junk")
    check(run("inspect", CNN, "--weights", tmp_path / "w.safetensors"), "not a whole safetensors file")
    save_file({"stem.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    check(run("inspect", CNN, "--weights", tmp_path / "w.safetensors"), "do not fit the model", "stem.weight")


def test_corrupt_and_foreign_folders(run, tmp_path):
    (tmp_path / "foreign").mkdir()
    check(run("evaluate", tmp_path / "foreign", "--data", "digits"), "holds no secateur.json")
    assert run("prune", CNN, *MACS, "--output", tmp_path / "a").code == 0
    check(run("evaluate", tmp_path / "a"), "without a recipe that names its data", "--data")
    weights = tmp_path / "a" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    check(run("measure", tmp_path / "a"), "model.safetensors", "bytes, but", "were saved")
    check(run("prune", CNN, *MACS, "--output", tmp_path / "a"), "exists", "--force")
    assert run("prune", CNN, *MACS, "--output", tmp_path / "a", "--force").code == 0
    secateur.load(tmp_path / "a")


def test_recipes_that_are_none(run, tmp_path):
    path = tmp_path / "r.toml"
    check(run("compress", path, "--output", tmp_path / "x"), "can't be read")
    path.write_text("[model")
    check(run("compress", path, "--output", tmp_path / "x"), "is not TOML")
    path.write_text("[model]\n[data]\n[budget]\nmacs = 0.5\n[finetune]\nepoch = 3\n")
    check(run("compress", path, "--output", tmp_path / "x"), "unknown key 'epoch'", "Did you mean 'epochs'?")
    path.write_text("[model]\n[data]\n[budget]\nmacs = 0.5\n")
    check(run("compress", path), "Give --output DIR")
    assert os.listdir(tmp_path) == ["r.toml"]


def test_wrong_usage_is_exit_code_2(run):
    for args in (("prune", CNN), ("trim",), ("inspect",), ("inspect", CNN, "--colour"), ("demo", "--seed", "x")):
        result = run(*args)
        assert result.code == 2
        assert result.out == ""
        assert "Usage" in result.err


def test_version(run):
    assert run("--version").out == f"secateur {secateur.__version__}\n"


def test_a_real_process_reports_an_error_without_traceback(process, tmp_path):
    check(process("--quiet", "prune", CNN, *MACS, "--criterion", "l3", "--output", "out"), "No criterion 'l3'")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_result_that_can_not_be_written(process):
    with open("/dev/full", "w") as full:
        result = process("recipe", stdout=full)
    check(result, "No space left on device")


@pytest.mark.slow
def test_a_full_disk(process, small_disk):
    check(process("--quiet", "prune", CNN, *MACS, "--output", small_disk / "out"), "No space left on device")
    assert os.listdir(small_disk) == []


@pytest.mark.slow
def test_ctrl_c_in_the_middle(tmp_path):
    command = [sys.executable, "-m", "secateur.cli", "demo", "--output", "runs/demo"]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    for line in process.stderr:
        if "train builtin" in line:
            break
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "interrupted" in err
    assert "Traceback" not in err
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "line",
    [
        'exec("raise KeyboardInterrupt")',  # the body of a module being imported makes dataclasses by exec
        'type("Made", (), {"name": Interrupted()})',  # and classes, whose __set_name__ may be where the key arrives
    ],
)
def test_ctrl_c_in_the_middle_of_an_import(tmp_path, line):
    (tmp_path / "burst.py").write_text(
        f"""
from secateur.cli.main import app

class Interrupted:
    def __set_name__(self, owner, name):
        raise KeyboardInterrupt

@app.command()
def burst():
    {line}

app(["burst"])
"""
    )
    run = subprocess.run([sys.executable, "-m", "burst"], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == "secateur: error: interrupted. What was there before is unchanged.\n"
