"""Folders of Hugging Face: what is written loads with `from_pretrained` and computes what `apply` gives."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.criteria import L1, L2, Context, score_groups
from secateur.errors import ConfigError, FileError, VerifyError
from secateur.frameworks import huggingface_folder
from secateur.frameworks.difference import largest_difference
from secateur.frameworks.huggingface_checkpoint import _Shards, open_checkpoint
from secateur.frameworks.huggingface_folder import load_folder, prune_folder
from secateur.frameworks.huggingface_model import build, example_inputs, quiet, read_config, without_cache
from secateur.frameworks.huggingface_plan import prepare
from secateur.frameworks.huggingface_scores import stream_scores
from secateur.plans import Plan
from secateur.tensors import tensors_in

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LLAMA = {"num_hidden_layers": 2, "vocab_size": 96, "intermediate_size": 88, "num_attention_heads": 8}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**LLAMA, **SPECIAL, "hidden_size": 96, "num_key_value_heads": 4}),
    "qwen3": (
        "Qwen3",
        {**LLAMA, "hidden_size": 64, "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True},
    ),
    "mistral": ("Mistral", {**LLAMA, "hidden_size": 96, "num_key_value_heads": 2}),
    "mixtral": ("Mixtral", {**LLAMA, "hidden_size": 96, "num_key_value_heads": 4, "num_local_experts": 3}),
    "gpt2": ("GPT2", {**SPECIAL, "n_embd": 60, "n_head": 5, "n_layer": 2, "vocab_size": 96, "n_positions": 32}),
}
BERT = {**LLAMA, "hidden_size": 80, "num_attention_heads": 5, "max_position_embeddings": 32}


def dense(name: str) -> Any:
    torch.manual_seed(0)
    if name == "bert":
        return transformers.BertForSequenceClassification(transformers.BertConfig(**BERT)).eval()
    cls, settings = MODELS[name]
    kind = "LMHeadModel" if name == "gpt2" else "ForCausalLM"
    return getattr(transformers, f"{cls}{kind}")(getattr(transformers, f"{cls}Config")(**settings)).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of several shards for each model, with norms and biases that are not all alike."""
    root = tmp_path_factory.mktemp("checkpoints")
    with quiet():
        for name in (*MODELS, "bert"):
            model = dense(name)
            for p in model.parameters():
                p.data += 0.05 * torch.randn_like(p)
            model.save_pretrained(root / name, max_shard_size="100KB")
            (root / name / "tokenizer.json").write_text("{}")
            assert len(list((root / name).glob("*.safetensors"))) > 1
    return {name: root / name for name in (*MODELS, "bert")}


def pretrained(folder: Path) -> nn.Module:
    cls = getattr(transformers, json.loads((folder / "config.json").read_text())["architectures"][0])
    with quiet():
        model, info = cls.from_pretrained(folder, output_loading_info=True, local_files_only=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return without_cache(model.eval())


def logits(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return tensors_in(model(input_ids=torch.randint(0, 96, (2, 9), generator=generator)))


SHRUNK = {
    "llama": {"hidden_size", "num_attention_heads", "num_key_value_heads"},
    "qwen3": {"hidden_size", "intermediate_size"},
    "mistral": {"intermediate_size"},
    "mixtral": {"hidden_size", "num_attention_heads"},
    "gpt2": {"n_embd", "n_head"},
    "bert": {"hidden_size", "num_attention_heads"},
}


FAST = ["llama", "qwen3", "gpt2", "bert"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "mixtral")]


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_uniform_loads_with_from_pretrained(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    report = prune_folder(folders[name], tmp_path / "small", secateur.Budget(params=0.6), prove=False)
    assert SHRUNK[name] <= report.numbers.keys()
    assert report.plan.cost_after.params <= 0.6 * report.plan.cost_before.params
    assert (tmp_path / "small" / "tokenizer.json").is_file()
    small = pretrained(tmp_path / "small")
    assert sum(p.numel() for p in small.parameters()) == report.plan.cost_after.params
    expected = secateur.apply(pretrained(folders[name]), report.plan)
    assert largest_difference(logits(expected), logits(small)) < 1e-5
    assert largest_difference(logits(expected), logits(load_folder(tmp_path / "small"))) < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "gpt2", SLOW[1]])
def test_per_layer_loads_with_our_loader(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    config = secateur.PruneConfig(method=secateur.Global(round_to=8))
    report = prune_folder(
        folders[name], tmp_path / "small", secateur.Budget(params=0.6), config, per_layer=True, prove=False
    )
    assert report.unloadable
    source, small = pretrained(folders[name]), load_folder(tmp_path / "small")
    assert secateur.verify(source, small, report.plan).is_ok
    assert largest_difference(logits(secateur.apply(source, report.plan)), logits(small)) < 1e-5
    assert Plan.from_json((tmp_path / "small" / "plan.json").read_text()) == report.plan
    with pytest.raises((RuntimeError, ValueError)), quiet():
        type(source).from_pretrained(tmp_path / "small", local_files_only=True)


def test_the_numbers_are_proven_by_default(folders: dict[str, Path], tmp_path: Path) -> None:
    report = prune_folder(folders["bert"], tmp_path / "small", secateur.Budget(params=0.7))
    assert report.proof is not None
    assert report.proof.is_ok
    assert "from_pretrained loads it" in str(report)


def test_only_one_shard_is_in_memory(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    peak = 0
    read = _Shards.read

    def watched(self: _Shards, key: str) -> Tensor:
        nonlocal peak
        tensor = read(self, key).clone()
        alive.append(weakref.ref(tensor))
        peak = max(peak, sum(t.nbytes for ref in alive if (t := ref()) is not None))
        return tensor

    monkeypatch.setattr(_Shards, "read", watched)
    prune_folder(folders["llama"], tmp_path / "small", secateur.Budget(params=0.6), prove=False)
    largest = max(path.stat().st_size for path in folders["llama"].glob("*.safetensors"))
    assert 0 < peak <= largest


@pytest.mark.parametrize("criterion", [L1(), L2(roles=("producer",), normalize="none")], ids=["l1", "l2"])
def test_streamed_scores_are_those_of_the_loaded_model(folders: dict[str, Path], criterion: Any) -> None:
    _, config, cls = read_config(folders["qwen3"])
    model = build(cls, config)
    graph = secateur.trace(model, example_inputs(model, config))
    streamed = stream_scores(graph.prunable, criterion, open_checkpoint(folders["qwen3"], model))
    loaded = score_groups(graph.prunable, criterion, Context.of(pretrained(folders["qwen3"])))
    assert streamed.keys() == loaded.keys()
    assert all(torch.equal(streamed[name], loaded[name]) for name in loaded)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_a_broken_run_leaves_nothing(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any
) -> None:
    def break_off(checkpoint: Any, plan: Plan) -> Iterator[tuple[str, Tensor]]:
        yield "some.weight", torch.zeros(100_000)
        yield "other.weight", torch.zeros(100_000)
        raise error

    monkeypatch.setattr(huggingface_folder, "_cut_all", break_off)
    with pytest.raises((KeyboardInterrupt, FileError)):
        prune_folder(folders["bert"], tmp_path / "small", secateur.Budget(params=0.7))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_proof_leaves_what_was_there(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "small"
    prune_folder(folders["bert"], target, secateur.Budget(params=0.7), prove=False)
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    with pytest.raises(FileError, match="exists"):
        prune_folder(folders["bert"], target, secateur.Budget(params=0.7))
    monkeypatch.setattr(huggingface_folder, "cut", lambda t, keep: torch.zeros_like(REAL(t, keep)))
    with pytest.raises(VerifyError, match="nothing was written"):
        prune_folder(folders["bert"], target, secateur.Budget(params=0.6), overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    monkeypatch.undo()
    prune_folder(folders["bert"], target, secateur.Budget(params=0.6), overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} != before


REAL = huggingface_folder.cut


def test_clear_errors(folders: dict[str, Path], tmp_path: Path) -> None:
    budget = secateur.Budget(params=0.7)
    with pytest.raises(FileError, match="no Hugging Face folder"):
        prune_folder(tmp_path, tmp_path / "small", budget)
    with pytest.raises(ConfigError, match="measures on data with a loaded model"):
        prune_folder(folders["bert"], tmp_path / "small", budget, secateur.PruneConfig(criterion="taylor"))
    broken = tmp_path / "broken"
    broken.mkdir()
    data = json.loads((folders["bert"] / "config.json").read_text())
    for change, message in (
        ({"architectures": ["Nothing"]}, "names no class"),
        ({"quantization_config": {"bits": 4}}, "quantized"),
        ({}, "Pickles"),
    ):
        (broken / "config.json").write_text(json.dumps(data | change))
        with pytest.raises(FileError, match=message):
            prune_folder(broken, tmp_path / "small", budget)
    shard = next(folders["bert"].glob("*00001*"))
    for path in folders["bert"].iterdir():
        (broken / path.name).write_bytes(path.read_bytes()[: 200 if path.name == shard.name else None])
    with pytest.raises(FileError, match="not a whole safetensors file"):
        prune_folder(broken, tmp_path / "small", budget)
    (broken / shard.name).unlink()
    with pytest.raises(FileError, match="lacks the shard"):
        prune_folder(broken, tmp_path / "small", budget)


def test_what_the_config_cannot_say_is_frozen_with_its_reason(folders: dict[str, Path]) -> None:
    data, config, cls = read_config(folders["qwen3"])
    model = build(cls, config)
    prepared = prepare(model, cls, data, example_inputs(model, config), per_layer=False)
    reasons = [g.frozen_reason or "" for g in prepared.graph.groups if g.kind == "head_dim"]
    assert reasons
    assert all("computed from config.json" in reason for reason in reasons)
