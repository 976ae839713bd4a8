"""`secateur export` and `secateur prune hf:FOLDER`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.cli import main as cli
from secateur.frameworks.huggingface_folder import load_folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


def test_export(run: Any, tmp_path: Path) -> None:
    source, file = "builtin:digits_cnn?width=8", tmp_path / "digits.pt2"
    code, out, _ = run("export", source, file, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["size_bytes"] == file.stat().st_size
    assert report["max_difference"] <= report["tolerance"]
    code, out, err = run("export", source, file)
    assert (code, out) == (1, "")
    assert "exists" in err
    code, out, _ = run("export", source, file, "--dynamic-batch", "--force")
    assert code == 0
    assert "largest relative difference" in out
    assert "any batch, compared at" in out
    assert torch.export.load(file).module()(torch.zeros(5, 1, 8, 8)).shape == (5, 10)


@pytest.mark.slow
def test_prune_and_export_a_hugging_face_folder(run: Any, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    asked = ("prune", f"hf:{tmp_path / 'bert'}", "--budget", "width=0.75")
    code, out, err = run(*asked, "--output", tmp_path / "small")
    assert code == 0, err
    assert "intermediate_size 64 → 48; from_pretrained loads it" in out
    assert load_folder(tmp_path / "small").config.intermediate_size == 48
    code, out, err = run(*asked, "--method", "uniform?round_to=32", "--output", tmp_path / "coarse")
    assert code == 0, err
    assert load_folder(tmp_path / "coarse").config.intermediate_size in (32, 64)
    code, out, err = run("inspect", f"hf:{tmp_path / 'small'}")
    assert code == 0, err
    assert "encoder.layer.0.intermediate.dense features" in out
    assert f"{sum(p.numel() for p in load_folder(tmp_path / 'small').parameters()):,} parameters" in out
    code, out, err = run("inspect", f"hf:{tmp_path / 'small'}", "--input-shape", "1,16")
    assert (code, out) == (1, "")
    assert "Leave out --weights and --input-shape" in err
    code, out, _ = run(
        "prune",
        f"hf:{tmp_path / 'bert'}",
        "--budget",
        "width=0.75",
        "--output",
        tmp_path / "own",
        "--per-layer",
        "--json",
    )
    assert code == 0
    assert "the plan says" in json.loads(out)["from_pretrained"]
    assert json.loads(out)["config"]["intermediate_size"] == {"before": 64, "after": 48}
    code, _, err = run("export", f"hf:{tmp_path / 'small'}", tmp_path / "bert.pt2")
    assert code == 0, err
    code, _, err = run("prune", "hf:bert", "--budget", "width=0.5", "--output", tmp_path / "x", "--weights", "w")
    assert code == 1
    assert "Leave out --weights" in err
