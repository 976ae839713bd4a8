"""Folders whose layers differ: what `config.json` says of each layer, and who can load that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.frameworks import huggingface_plan
from secateur.frameworks.difference import largest_difference
from secateur.frameworks.huggingface_folder import FolderReport, load_folder, prune_folder
from secateur.frameworks.huggingface_layers import LayerFields, find_layer_fields
from secateur.frameworks.huggingface_model import MARK, build, example_inputs, quiet, read_config, without_cache
from secateur.frameworks.huggingface_plan import prepare
from secateur.frameworks.huggingface_rebuild import Mismatch
from secateur.tensors import tensors_in

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

SMALL = {"num_hidden_layers": 2, "vocab_size": 96, "intermediate_size": 88, "num_attention_heads": 8, "hidden_size": 64}
KEYS = {"num_key_value_heads": 2, "head_dim": 16}
GEMMA = {
    **SMALL,
    **KEYS,
    "vocab_size_per_layer_input": 96,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 0,
    "layer_types": ["sliding_attention", "full_attention"],
}
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**SMALL, **KEYS}),
    "bert": ("BertModel", "BertConfig", {**SMALL, "max_position_embeddings": 32}),
    # a list by layer, which its class reads
    "gemma3n": (
        "Gemma3nForCausalLM",
        "Gemma3nTextConfig",
        {**GEMMA, "laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 2},
    ),
    # a `per_layer_config` of its own, of which its class reads a part
    "gemma4": ("Gemma4ForCausalLM", "Gemma4TextConfig", {**GEMMA, "global_head_dim": 32}),
}
GLOBAL = secateur.Global(round_to=2)


def dense(name: str, folder: Path) -> Path:
    torch.manual_seed(0)
    cls, config, settings = MODELS[name]
    with quiet():
        model = getattr(transformers, cls)(getattr(transformers, config)(**settings))
        for p in model.parameters():
            p.data += 0.05 * torch.randn_like(p)
        model.save_pretrained(folder)
    return folder


def prune(name: str, root: Path, *ignore: str) -> FolderReport:
    config = secateur.PruneConfig(method=GLOBAL, ignore=ignore)
    source = dense(name, root / "dense")
    return prune_folder(source, root / "small", secateur.Budget(params=0.7), config, per_layer=True, prove=False)


def config_of(folder: Path) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return data


def pretrained(folder: Path) -> nn.Module:
    with quiet():
        cls = getattr(transformers, config_of(folder)["architectures"][0])
        return without_cache(cls.from_pretrained(folder, local_files_only=True).eval())


def logits(model: nn.Module) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return tensors_in(model(input_ids=torch.randint(0, 96, (2, 9), generator=generator)))


def widths(report: FolderReport, part: str) -> list[int]:
    return [len(g.keep) for g in report.plan.groups if part in g.name]


def layer_fields(name: str, root: Path) -> tuple[LayerFields, Any]:
    data, config, cls = read_config(dense(name, root / "dense"))
    model = build(cls, config)
    prepared = prepare(model, cls, data, example_inputs(model, config), per_layer=True)
    assert prepared.layers is not None
    return prepared.layers, prepared.graph


@pytest.mark.slow
def test_lists_by_layer_load_with_from_pretrained(tmp_path: Path) -> None:
    report = prune("gemma3n", tmp_path, "*self_attn*", "*laurel*", "*per_layer*")
    data = config_of(tmp_path / "small")
    assert report.unloadable == ""
    assert MARK not in data
    assert data["intermediate_size"] == widths(report, ".mlp.")
    assert len(set(data["intermediate_size"])) > 1
    expected = secateur.apply(pretrained(tmp_path / "dense"), report.plan)
    assert largest_difference(logits(expected), logits(pretrained(tmp_path / "small"))) < 1e-5
    assert "from_pretrained loads it" in str(report)


@pytest.mark.slow
def test_a_list_is_one_width_where_layers_are_alike(tmp_path: Path) -> None:
    source = dense("gemma3n", tmp_path / "dense")
    report = prune_folder(source, tmp_path / "small", secateur.Budget(params=0.7), prove=False)
    (width,) = set(widths(report, ".mlp."))
    assert config_of(tmp_path / "small")["intermediate_size"] == [width] * 2
    assert width < 88
    expected = secateur.apply(pretrained(source), report.plan)
    assert largest_difference(logits(expected), logits(pretrained(tmp_path / "small"))) < 1e-5


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_what_transformers_cannot_build_yet_is_said_and_loads_with_ours(tmp_path: Path, name: str) -> None:
    report = prune(name, tmp_path)
    data = config_of(tmp_path / "small")
    part = "mlp" if name == "qwen3" else "intermediate"
    assert [data["per_layer_config"][str(i)]["intermediate_size"] for i in range(2)] == widths(report, part)
    assert data[MARK] == {"plan": "plan.json", "config": config_of(tmp_path / "dense")}
    source = pretrained(tmp_path / "dense")
    small = load_folder(tmp_path / "small")
    assert largest_difference(logits(secateur.apply(source, report.plan)), logits(small)) < 1e-5
    with pytest.raises((RuntimeError, ValueError)):
        pretrained(tmp_path / "small")
    (line,) = [line for line in str(report).splitlines() if "from_pretrained can't" in line]
    assert "AmbiguousGlobalPerLayerAttributeError" in line
    with pytest.raises(secateur.errors.FileError, match="pruned layer by layer"):
        prune_folder(tmp_path / "small", tmp_path / "again", secateur.Budget(params=0.7))


def test_a_config_keeps_what_it_said_of_its_layers(tmp_path: Path) -> None:
    report = prune("gemma4", tmp_path)
    said = config_of(tmp_path / "small")["per_layer_config"]
    assert [said[str(i)]["intermediate_size"] for i in range(2)] == widths(report, ".mlp.")
    assert [said[i].get("head_dim") for i in "01"] == [None, 32]
    expected = secateur.apply(pretrained(tmp_path / "dense"), report.plan)
    assert largest_difference(logits(expected), logits(load_folder(tmp_path / "small"))) < 1e-5


def test_what_would_load_as_something_else_says_nothing_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Mismatch("the table 'scale' has other values there", is_refused=False)
    monkeypatch.setattr(huggingface_plan, "mismatch", lambda *_: other)
    report = prune("qwen3", tmp_path)
    data = config_of(tmp_path / "small")
    assert {key: value for key, value in data.items() if key != MARK} == config_of(tmp_path / "dense")
    assert report.unloadable == other.text
    assert report.numbers == {}
    with pytest.raises(RuntimeError):
        pretrained(tmp_path / "small")


@pytest.mark.parametrize("name", ["qwen3", "bert"])
def test_layers_that_end_alike_have_the_config_of_alike_layers(tmp_path: Path, name: str) -> None:
    """Half of each width that a field counts: the numbers are those of the uniform form."""
    layers, _ = layer_fields(name, tmp_path)
    known = {role for width in layers.fields.values() for role in width.roles}
    counts = {g.name: g.size // 2 for role in known for g in layers.roles[role]}
    data = layers.config_data(counts)
    assert "per_layer_config" not in data
    for (field,), width in layers.fields.items():
        assert (
            data[str(field)]
            == width.constant * torch.tensor([layers.roles[r][0].size // 2 for r in width.roles]).prod()
        )


def test_looking_for_fields_leaves_the_graph_as_it_was(tmp_path: Path) -> None:
    data, config, cls = read_config(dense("qwen3", tmp_path / "dense"))
    model = build(cls, config)
    prepared = prepare(model, cls, data, example_inputs(model, config), per_layer=True)
    plain = secateur.trace(model, example_inputs(model, config))
    secateur.repair.repair(model, example_inputs(model, config), plain)
    assert [(g.name, g.tied_to) for g in prepared.graph.prunable] == [(g.name, g.tied_to) for g in plain.prunable]
    find_layer_fields(prepared.fit)
    assert [g.name for g in prepared.graph.prunable] == [g.name for g in plain.prunable]
