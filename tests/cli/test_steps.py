"""Recipes of several steps from the command line, killed and gone on with."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from secateur.allocate import Budget
from secateur.compression import MeasureConfig
from secateur.recipe import FINETUNE, TRAIN, ModelConfig, Recipe, write_recipe
from secateur.steps import Distill, Finetune, Prune, Quantize, Sparsify

STEPS = (
    Prune(budget=Budget(macs=0.5)),
    Sparsify(sparsity=0.5),
    Quantize(bits=4),
    Finetune(train=dataclasses.replace(FINETUNE, epochs=2), distill=Distill()),
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Recipe(
        model=ModelConfig(source="builtin:digits_cnn?width=8"),
        train=dataclasses.replace(TRAIN, epochs=2),
        steps=STEPS,
        measure=MeasureConfig(repeats=3, max_seconds=0.1, n_threads=1),
    )
    path = tmp_path_factory.mktemp("recipe") / "steps.toml"
    path.write_text(write_recipe(made))
    return path


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "secateur.cli", "compress", str(recipe), "--output", str(folder), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


@pytest.mark.slow
def test_a_killed_recipe_goes_on_and_ends_as_if_nothing_had_happened(run: Any, recipe: Path, tmp_path: Path) -> None:
    whole = finish(start(recipe, tmp_path / "whole"))
    folder, steps = tmp_path / "killed", tmp_path / "killed.steps"
    process = start(recipe, folder)
    deadline = time.monotonic() + 120
    while not (steps / "2-sparsify").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not folder.exists()
    assert any(steps.glob("[1-4]-*"))
    resumed = finish(start(recipe, folder))
    assert not steps.exists()
    quality = [{**step["measured"], **dict.fromkeys(LATENCY)} for step in whole["steps"]]
    assert quality == [{**step["measured"], **dict.fromkeys(LATENCY)} for step in resumed["steps"]]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
    again = json.loads(run("evaluate", folder, "--json").out)
    assert again["accuracy"] == resumed["steps"][-1]["measured"]["accuracy"]
    assert [step["name"] for step in resumed["steps"]] == ["prune", "sparsify", "quantize", "finetune"]
    assert resumed["steps"][-1]["measured"]["size_bytes"] * 5 < resumed["dense"]["size_bytes"]


LATENCY = ("latency_ms", "latency_p25_ms", "latency_p75_ms")
