"""Depth: without a block, a network computes what it computes with that block replaced by an identity."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur
from secateur.criteria import cross_entropy
from secateur.depth import CHOICES, Data, Identity, Removal, find_blocks
from secateur.edits import Edits
from secateur.errors import ConfigError, PlanError, RegistryError
from secateur.models import cifar_resnet20
from secateur.steps import STEPS, Context, Drop

TOKENS = torch.randint(0, 60, (4, 12), generator=torch.Generator().manual_seed(0))
IDS = {"input_ids": TOKENS}


def context(model: nn.Module, example: Any, batches: Sequence[Any] = ()) -> Context:
    return Context(dense=model, inputs=lambda n: example, calibration=lambda: iter(batches))


class Pass(nn.Module):
    """The law's own identity: slow and obvious."""

    def forward(self, x: Tensor, *rest: Any, **more: Any) -> Tensor:
        return x


def without(model: nn.Module, *fqns: str) -> nn.Module:
    made = copy.deepcopy(model)
    for fqn in fqns:
        holder, _, name = fqn.rpartition(".")
        setattr(made.get_submodule(holder), name, Pass())
    return made.eval()


class Residual(nn.Module):
    """x + scale * layer(x), as a tuple if asked."""

    def __init__(self, scale: float, n_outputs: int = 0) -> None:
        super().__init__()
        self.layer, self.scale, self.n_outputs = nn.Linear(8, 8), scale, n_outputs

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Any:
        out = x + self.scale * self.layer(x)
        return (out, *[None] * (self.n_outputs - 1)) if self.n_outputs else out


class Stack(nn.Module):
    def __init__(self, scales: Sequence[float], n_outputs: int = 0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Residual(scale, n_outputs) for scale in scales)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            out = block(x, mask=None)
            x = out[0] if isinstance(out, tuple) else out
        logits: Tensor = self.head(x)
        return logits


@pytest.mark.parametrize("n_outputs", [0, 1, 3])
@pytest.mark.parametrize(("by", "gone"), [("first", {0, 1}), ("last", {3, 4})])
def test_a_removed_block_is_an_identity(by: str, gone: set[int], n_outputs: int) -> None:
    torch.manual_seed(0)
    model, x = Stack([1.0] * 5, n_outputs).eval(), torch.randn(4, 8)
    done = Drop(n=2, by=by).run(model, context(model, x))
    plain = Stack([1.0] * 5).eval()
    plain.load_state_dict(model.state_dict())
    assert torch.equal(done.model(x), without(plain, *(f"blocks.{i}" for i in gone))(x))
    assert done.edit.identities == {f"blocks.{i}": n_outputs for i in sorted(gone)}
    assert "became identities: no config counts its blocks" in done.notes[0]
    assert done.model.blocks[min(gone)].scale == 1.0  # what code around may ask for
    assert all(isinstance(block, Residual) for block in model.blocks)


def test_edits_are_json_and_replay() -> None:
    torch.manual_seed(0)
    model, x = Stack([1.0] * 5).eval(), torch.randn(4, 8)
    done = Drop(only=("blocks.[13]",)).run(model, context(model, x))
    edits = Edits().then(done.edit)
    assert Edits.from_json(edits.to_json()) == edits
    again = edits.replay(Stack([1.0] * 5))
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(x), done.model(x))


@pytest.mark.slow
def test_a_new_process_knows_the_edits_of_all_steps() -> None:
    text = Edits().then(Removal({"0": 0})).to_json()
    code = "import sys; from secateur.edits import Edits; print(Edits.from_json(sys.stdin.read()).steps[0].kind)"
    run = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    assert run.stdout == "drop\n"


def test_resnet_blocks_that_change_shapes_stay() -> None:
    torch.manual_seed(0)
    model, x = cifar_resnet20().eval(), torch.randn(2, 3, 32, 32)
    blocks, skipped = find_blocks(model, x)
    expected = [f"layer{i}.{j}" for i in (1, 2, 3) for j in range(3)]
    assert [b.fqn for b in blocks] == [fqn for fqn in expected if fqn not in ("layer2.0", "layer3.0")]
    assert dict(skipped)["layer2.0"] == "it turns float32 [2, 16, 32, 32] into float32 [2, 32, 16, 16]"
    done = Drop(only=("layer3.*",)).run(model, context(model, x))
    assert torch.equal(done.model(x), without(model, "layer3.1", "layer3.2")(x))
    secateur.apply(done.model, secateur.plan(done.model, x, secateur.Budget(macs=0.5)))  # proven by the numeric law


def angle(x: Tensor, y: Tensor) -> float:
    pairs = zip(x.flatten(0, -2), y.flatten(0, -2), strict=True)
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
    return sum(math.acos(c) for c in cosines) / len(cosines) / math.pi


@torch.no_grad()
def test_angular_distance_takes_the_run_that_turns_least() -> None:
    torch.manual_seed(0)
    model = Stack([1.0, 0.1, 0.1, 1.0, 0.02]).eval()
    batches = [torch.randn(3, 4, 8) for _ in range(2)]
    choice = CHOICES["angular"](model, find_blocks(model, batches[0])[0], 2, Data(lambda: batches, cross_entropy))
    for start in range(4):  # slow and obvious
        total = 0.0
        for x in batches:
            for i in range(start):
                x = model.blocks[i](x)
            total += angle(x, model.blocks[start + 1](model.blocks[start](x))) / 2
        assert choice.scores[f"blocks.{start}"] == pytest.approx(total, abs=1e-5)
    assert [b.fqn for b in choice.blocks] == ["blocks.1", "blocks.2"]


@torch.no_grad()
def test_kl_and_loss_take_one_block_after_another() -> None:
    torch.manual_seed(0)
    model = Stack([1.0, 0.1, 0.5, 0.01, 1.0]).eval()
    batches = [(torch.randn(6, 8), torch.randint(0, 3, (6,))) for _ in range(2)]

    def kl(*gone: int) -> float:
        small = without(model, *(f"blocks.{i}" for i in gone))
        found = [
            functional.kl_div(small(x).log_softmax(1), model(x).softmax(1), reduction="batchmean") for x, _ in batches
        ]
        return float(sum(found)) / 2

    def loss(*gone: int) -> float:
        small = without(model, *(f"blocks.{i}" for i in gone))
        return float(sum(functional.cross_entropy(small(x), y) for x, y in batches)) / 2

    for by, score in (("kl", kl), ("loss", loss)):
        gone: list[int] = []
        expected = {}
        for _ in range(2):
            gone.append(min((i for i in range(5) if i not in gone), key=lambda i: score(*gone, i)))
            expected[f"blocks.{gone[-1]}"] = score(*gone)
        done = Drop(n=2, by=by).run(model, context(model, batches[0][0], batches))
        assert done.facts["scores"] == pytest.approx(expected, abs=1e-6)
        assert set(done.edit.identities) == set(expected)


def hugging_face(name: str, **settings: Any) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 4}
    small |= {"intermediate_size": 24, "max_position_embeddings": 32, "num_key_value_heads": 2, "head_dim": 4}
    cls = getattr(transformers, name)
    model: nn.Module = cls(cls.config_class(**{**small, **settings})).eval()
    return model


SLIDING = {"sliding_window": 4, "use_sliding_window": True}
CAUSAL = {
    "LlamaForCausalLM": {},
    "Qwen3ForCausalLM": {"layer_types": ["full_attention", "sliding_attention"] * 2, **SLIDING},
    "Gemma3ForCausalLM": {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4},
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 4, "n_head": 4, "n_positions": 32},
    "MixtralForCausalLM": {"num_local_experts": 2},
}


FOLLOWING = ("num_hidden_layers", "n_layer", "layer_types")


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_models_save_load_and_generate(name: str, tmp_path: Path) -> None:
    model = hugging_face(name, **CAUSAL[name])
    holder = "transformer.h" if name.startswith("GPT2") else "model.layers"
    done = Drop(only=(f"{holder}.[02]",)).run(model, context(model, IDS))
    assert done.notes == ()
    assert done.edit.lists == {holder: (0, 2)}
    assert {path for _, path, _ in done.edit.numbers} <= {
        "layer_idx",
        "layer_types",
        *(f"config.{name}" for name in FOLLOWING),
    }
    small = done.model
    assert small.config.num_hidden_layers == len(small.get_submodule(holder)) == 2
    small.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = without(model, f"{holder}.0", f"{holder}.2")(TOKENS, use_cache=False).logits
        for made in (small, again):
            torch.testing.assert_close(made(TOKENS).logits, expected)
    cached, plain = (again.generate(TOKENS, max_new_tokens=4, do_sample=False, use_cache=c) for c in (True, False))
    assert torch.equal(cached, plain)
    replayed = Edits.from_json(Edits().then(done.edit).to_json()).replay(model)
    assert torch.equal(replayed(TOKENS).logits, small(TOKENS).logits)
    assert model.config.num_hidden_layers == 4


@pytest.mark.parametrize(
    ("name", "lists", "numbers"),
    [
        ("BertModel", {"encoder.layer": 3}, {"num_hidden_layers": 3}),
        ("BertForMaskedLM", {"bert.encoder.layer": 3}, {"num_hidden_layers": 3}),
        (
            "BartForConditionalGeneration",
            {"model.encoder.layers": 3, "model.decoder.layers": 3},
            {"encoder_layers": 3, "decoder_layers": 3},
        ),
    ],
)
def test_encoders_save_and_load(name: str, lists: dict[str, int], numbers: dict[str, int], tmp_path: Path) -> None:
    bart = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "encoder_layers": 4, "decoder_layers": 4}
    bart |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = hugging_face(name, **(bart if name.startswith("Bart") else {}))
    example = {**IDS, "decoder_input_ids": TOKENS} if name.startswith("Bart") else IDS
    done = Drop(only=tuple(f"{fqn}.1" for fqn in lists)).run(model, context(model, example))
    assert done.notes == ()
    assert numbers.items() <= {path.removeprefix("config."): value for _, path, value in done.edit.numbers}.items()
    done.model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        expected = without(model, *(f"{fqn}.1" for fqn in lists))(**example, use_cache=False)[0]
        torch.testing.assert_close(again(**example)[0], expected)
    assert {fqn: len(again.get_submodule(fqn)) for fqn in lists} == lists


def test_a_scale_by_place_keeps_identities() -> None:
    """Taken out of the list, the later blocks would be scaled by their new places when the model is loaded."""
    model = hugging_face("GPT2LMHeadModel", n_embd=16, n_layer=4, n_head=4, scale_attn_by_inverse_layer_idx=True)
    done = Drop(only=("*.h.1",)).run(model, context(model, IDS))
    assert set(done.edit.identities) == {"transformer.h.1"}
    assert "the others compute something else in their new places" in done.notes[0]
    with torch.no_grad():
        expected = without(model, "transformer.h.1")(TOKENS, use_cache=False).logits
        torch.testing.assert_close(done.model(TOKENS, use_cache=False).logits, expected)


def test_what_cannot_go_is_said() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 4), nn.LSTM(4, 4), nn.Linear(4, 4), nn.ReLU()])

        def forward(self, x: Tensor) -> Tensor:
            x, _ = self.blocks[2](self.blocks[1](self.blocks[0](x)))
            return x

    model, x = Odd(), torch.randn(2, 8)
    blocks, skipped = find_blocks(model, x)
    assert [b.fqn for b in blocks] == ["blocks.0"]
    assert dict(skipped) == {
        "blocks.1": "it turns float32 [2, 8] into float32 [2, 4]",
        "blocks.2": "it returns more than one tensor",
        "blocks.3": "it is not called",
    }
    with pytest.raises(ConfigError, match="1 blocks of Odd can be removed, not 2"):
        Drop(n=2, by="last").run(model, context(model, x))
    with pytest.raises(ConfigError, match="Say how many"):
        Drop()
    with pytest.raises(ConfigError, match="n=0"):
        Drop(n=0)
    with pytest.raises(RegistryError, match="No choice of blocks 'best'"):
        Drop(n=1, by="best")
    with pytest.raises(PlanError, match=r"no block 'blocks\.9'"):
        Removal({"blocks.9": 0}).replay(model)
    with pytest.raises(PlanError, match="'blocks' is no ModuleList with more than"):
        Removal(lists={"blocks": (0, 1, 2, 3, 4)}).replay(model)
    assert STEPS["drop"] is Drop
    assert isinstance(Removal({"blocks.0": 0}).replay(model).blocks[0], Identity)
