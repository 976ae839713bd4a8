"""Each command does its one thing, for people and as JSON."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from safetensors.torch import save_file

import secateur
from secateur.compression import MeasureConfig
from secateur.models import digits_cnn
from secateur.recipe import FINETUNE, TRAIN, ModelConfig, Recipe, read_recipe_text, write_recipe

CNN = "builtin:digits_cnn?width=8"


@pytest.fixture
def quick_recipe(tmp_path):
    recipe = Recipe(
        model=ModelConfig(source=CNN),
        train=dataclasses.replace(TRAIN, epochs=2),
        finetune=dataclasses.replace(FINETUNE, epochs=1),
        measure=MeasureConfig(repeats=3),
    )
    path = tmp_path / "recipe.toml"
    path.write_text(write_recipe(recipe))
    return path


def test_inspect(run):
    shown = run("inspect", CNN)
    assert (shown.code, shown.err) == (0, "")
    assert "linear" in shown.out
    assert "prunable" in shown.out
    assert "model output" in shown.out
    data = json.loads(run("inspect", CNN, "--input-shape", "1,1,16,16", "--json").out)
    graph = secateur.trace(digits_cnn(width=8), torch.zeros(1, 1, 16, 16))
    assert data["macs"] == graph.cost().macs
    assert [g["name"] for g in data["groups"]] == [g.name for g in graph.groups]


def test_prune_by_a_criterion_on_data_without_a_budget(run, tmp_path):
    args = ("--criterion", "kl_fisher", "--method", "top_n?n=5", "--data", "digits", "--output", tmp_path / "small")
    found = json.loads(run("prune", CNN, *args, "--json").out)
    assert {widths["after"] for widths in found["widths"].values()} == {5}
    refused = run("prune", CNN, "--output", tmp_path / "other")
    assert (refused.code, "Method 'uniform' takes a budget" in refused.err) == (1, True)


@pytest.mark.slow
def test_prune_then_prune_again_then_evaluate_and_measure(run, tmp_path):
    weights = tmp_path / "dense.safetensors"
    torch.manual_seed(3)
    dense = digits_cnn(width=8)
    save_file(dense.state_dict(), weights)
    a, b = tmp_path / "a", tmp_path / "b"
    args = ("--budget", "macs=0.5", "--criterion", "taylor", "--data", "digits")
    first = json.loads(run("prune", CNN, "--weights", weights, *args, "--output", a, "--json").out)
    assert first["macs"]["after"] <= 0.5 * first["macs"]["before"]
    assert first["max_difference"] < 1e-4
    second = run("prune", a, "--budget", "width=0.5", "--method", "global", "--output", b)
    assert second.code == 0
    assert "verified" in second.out
    assert sum(p.numel() for p in secateur.load(b).parameters()) < first["params"]["after"]

    found = json.loads(run("evaluate", a, "--data", "digits", "--split", "val", "--json").out)
    assert found["n_samples"] == 270
    assert 0 <= found["accuracy"] <= 1
    quick = ("--repeats", "3", "--runtime", "eager", "--runtime", "onnx")
    measured = json.loads(run("measure", CNN, "--versus", b, *quick, "--batch-size", "4", "--json").out)
    big, small = measured["sizes"]
    assert big["macs"] == 4 * first["macs"]["before"]
    assert small["params"] == sum(p.numel() for p in secateur.load(b).parameters())
    assert measured["mac_ratios"][1] == big["macs"] / small["macs"]
    for runtime in ("eager", "onnx"):
        assert measured["latencies"][runtime][1]["batch_size"] == 4
        speedup = measured["speedups"][runtime][1]
        assert (
            speedup["p25"]
            <= speedup["median"]
            == pytest.approx(measured["realised"][runtime][1] * measured["mac_ratios"][1])
        )
    shown = run("measure", b, "--repeats", "3", "--runtime", "eager").out
    assert "per batch of 1 (inputs 1×1×8×8) in eager" in shown


def test_ignored_modules_stay_whole(run, tmp_path):
    result = run("prune", CNN, "--budget", "width=0.5", "--ignore", "block1.*", "--output", tmp_path / "x", "--json")
    data = json.loads(result.out)
    assert any("ignore pattern 'block1.*'" in reason for _, reason in data["skipped"])
    assert secateur.load(tmp_path / "x").block1.conv1.weight.shape == (8, 8, 3, 3)


def test_compress_reports_and_saves_what_it_says(run, quick_recipe, tmp_path):
    folder = tmp_path / "small"
    result = run("compress", quick_recipe, "--output", folder, "--json")
    assert result.code == 0
    assert "fine-tune" in result.err
    data = json.loads(result.out)
    for stage in ("dense", "pruned", "finetuned"):
        assert data[stage].keys() >= {"accuracy", "params", "macs", "size_bytes", "latency_ms"}
    assert data["finetuned"]["macs"] <= 0.4 * data["dense"]["macs"]
    assert json.loads((folder / "report.json").read_text())["finetuned"] == data["finetuned"]
    assert read_recipe_text((folder / "recipe.toml").read_text()).model.source == CNN
    again = json.loads(run("evaluate", folder, "--json").out)
    assert again["accuracy"] == data["finetuned"]["accuracy"]
    assert (folder / "model.safetensors").stat().st_size == data["finetuned"]["size_bytes"]


def test_recipe_prints_what_compress_reads(run):
    assert read_recipe_text(run("recipe").out) == Recipe()


def test_the_same_seed_gives_the_same_model(run, quick_recipe, tmp_path):
    for name in "ab":
        result = run("--quiet", "compress", quick_recipe, "--output", tmp_path / name)
        assert (result.code, result.err) == (0, "")
    a, b = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert a == b


@pytest.mark.slow
def test_demo_keeps_its_promises(process, tmp_path):
    result = process("demo", "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    assert data["dense"]["accuracy"] >= 0.98
    assert data["finetuned"]["accuracy"] >= data["dense"]["accuracy"] - 0.01
    assert data["finetuned"]["macs"] <= 0.4 * data["dense"]["macs"]
    assert data["reloaded"]["accuracy"] == data["finetuned"]["accuracy"]
    assert (tmp_path / "secateur-demo" / "secateur.json").exists()
