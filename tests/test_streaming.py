"""Calibration in stages: layers read what they read in the network's own forward, whatever became of those before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.coding import codable
from secateur.layers import gram, layers_of, sum_over_inputs
from secateur.streaming import find_chain, stages, sums_by_stage


class Residual(nn.Module):
    """A block that writes into what it reads and hands a tuple on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Any, *, scale: Tensor) -> tuple[Tensor, None]:
        return x.add_(self.down(self.up(x).relu()) * scale), None


class Net(nn.Module):
    """Blocks with an argument of their own each, between layers that are in none."""

    def __init__(self, skips: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(Residual(4) for _ in range(3))
        self.pair = nn.Sequential(nn.ReLU(), nn.ReLU())
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        x = start = self.stem(x)
        start = start.clone()
        for i, block in enumerate(self.blocks):
            if self.skips and i == 2:
                x = x + start
            x = self.pair(block(x, scale=torch.tensor(1.0 + i))[0])
        return self.head(x)


def net(**settings: bool) -> Net:
    torch.manual_seed(0)
    return Net(**settings).eval()


BATCHES = list(torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0)))


def sums(model: nn.Module, batches: list[Any], blocks: list[str]) -> Iterator[tuple[str, Tensor]]:
    """The Gram matrix of each layer by key, stage by stage."""
    layers, _ = layers_of(model, codable(model)[0])
    return ((layer.key, total) for layer, total in sums_by_stage(model, batches, blocks, layers, gram))


def test_blocks_are_found_by_what_they_hold() -> None:
    assert find_chain(net(), BATCHES[0]) == ["blocks.0", "blocks.1", "blocks.2"]
    assert find_chain(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), BATCHES[0]) == []


def test_blocks_that_read_more_than_the_one_before_gives_are_no_chain() -> None:
    assert find_chain(net(skips=True), BATCHES[0]) == ["blocks.0", "blocks.1", "blocks.2"]  # it skips from the stem

    class Skipping(Net):
        def forward(self, x: Tensor) -> Tensor:
            first = self.blocks[0](self.stem(x), scale=torch.tensor(1.0))[0].clone()
            second = self.blocks[1](first.clone(), scale=torch.tensor(1.0))[0]
            return self.head(self.blocks[2](second + first, scale=torch.tensor(1.0))[0])

    torch.manual_seed(0)
    assert find_chain(Skipping().eval(), BATCHES[0]) == []


def test_blocks_that_run_in_another_order_are_no_chain() -> None:
    class Backwards(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in reversed(self.blocks):
                x = block(x, scale=torch.tensor(1.0))[0]
            return self.head(x)

    assert find_chain(Backwards().eval(), BATCHES[0]) == []


@pytest.mark.parametrize("is_streamed", [True, False])
def test_layers_read_what_they_read_in_a_forward(is_streamed: bool) -> None:
    model = net()
    layers, _ = layers_of(model, codable(model)[0])
    expected = sum_over_inputs(layers, lambda: [model(x) for x in BATCHES], gram)
    blocks = find_chain(model, BATCHES[0]) if is_streamed else []
    assert [stage.fqn for stage in stages(model, BATCHES, blocks)] == (["", *blocks, ""] if blocks else [""])
    torch.testing.assert_close(dict(sums(model, BATCHES, blocks)), expected)
    assert "forward" not in vars(model.blocks[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


LLAMA = {"num_hidden_layers": 3, "vocab_size": 96, "intermediate_size": 88, "num_attention_heads": 4, "hidden_size": 32}
GEMMA = {**LLAMA, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 3, "num_heads": 4, "decoder_start_token_id": 0}
MODELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", LLAMA, "model.layers.0"),
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 32, "n_head": 4, "n_layer": 3, "n_positions": 32}, "transformer.h.0"),
    "bert": ("BertForSequenceClassification", LLAMA, "bert.encoder.layer.0"),
    "gemma2": ("Gemma2ForCausalLM", GEMMA, "model.layers.0"),  # masks that alternate from layer to layer
    "mixtral": ("MixtralForCausalLM", {**LLAMA, "num_key_value_heads": 2, "num_local_experts": 3}, "model.layers.0"),
    "t5": ("T5ForConditionalGeneration", T5, "decoder.block.0"),  # all blocks read what the encoder gives
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", MODELS)
def test_transformers_are_chains_of_blocks(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    kind, settings, first = MODELS[name]
    cls = getattr(transformers, kind)
    torch.manual_seed(0)
    model = cls(
        cls.config_class(**{"vocab_size": 96, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0} | settings)
    )
    ids = torch.randint(2, 90, (2, 12))
    batch = {"input_ids": ids} | ({"decoder_input_ids": ids} if name == "t5" else {})
    model.eval()
    blocks = find_chain(model, batch)
    assert (blocks[0], len(blocks)) == (first, 3)
    layers, _ = layers_of(model, codable(model)[0])
    inside = {key: layer for key, layer in layers.items() if key.startswith(tuple(f"{fqn}." for fqn in blocks))}
    with torch.no_grad():
        expected = sum_over_inputs(inside, lambda: model(**batch), gram)
    found = {key: total for key, total in sums(model, [batch], blocks) if key in inside}
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_later_blocks_see_what_earlier_ones_became() -> None:
    model, changed = net(), net()
    for module in (changed.blocks[0].down, changed.blocks[1].up):
        module.weight.data.zero_()
    others, _ = layers_of(changed, codable(changed)[0])
    expected = sum_over_inputs(others, lambda: [changed(x) for x in BATCHES], gram)
    for key, found in sums(model, BATCHES, ["blocks.0", "blocks.1", "blocks.2"]):
        if key != "blocks.1.down.weight":  # in its own block the change is not made yet
            torch.testing.assert_close(found, expected[key])
        if key in ("blocks.0.down.weight", "blocks.1.up.weight"):
            model.get_parameter(key).data.zero_()


def test_an_error_in_the_forward_leaves_the_model_as_it_was() -> None:
    model = net()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(stages(model, [torch.zeros(2, 7)], ["blocks.0", "blocks.1"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
