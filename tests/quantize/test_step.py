"""The step as a whole, and GPTQ inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
import secateur.quantize as q
from secateur.coding import Mask, attach_, codable, codings_of
from secateur.edits import Edits, Prune
from secateur.errors import ConfigError, DataError, GroupError
from secateur.layers import Layer, gram
from secateur.measure import size_bytes
from secateur.quantize.gptq import gptq
from secateur.steps import STEPS, Quantize, Step
from secateur.steps.quantize import quantize

from .small_cnn import BATCHES, X, losses_in_training, net


@pytest.mark.parametrize("method", ["symmetric", "affine", "ternary", "binary"])
@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel", "per_group?group_size=9"])
@pytest.mark.parametrize("gptq", [False, True])
def test_weights_are_on_their_levels_saved_and_loaded(
    method: str, granularity: str, gptq: bool, tmp_path: Path
) -> None:
    model = net()
    done = quantize(model, BATCHES, Quantize(method=method, bits=3, granularity=granularity, gptq=gptq))
    assert not codings_of(model)
    assert done.skipped == ()
    assert list(done.facts["layers"]) == list(codings_of(done.model)) == ["0.weight", "3.weight", "7.weight"]
    for key, (coding,) in codings_of(done.model).items():
        weight = codable(done.model)[0][key]
        assert all(len(row.unique()) <= coding.n_codes for row in coding.granularity.rows(weight))
        assert 0 < done.facts["layers"][key]["error"] < 1
    folder = secateur.save(done.model, tmp_path / "small", plan=Edits().then(done.edit), inputs=X)
    assert torch.equal(secateur.load(folder, net)(X), done.model(X))
    assert size_bytes(done.model) < size_bytes(model)


class Mixed(nn.Module):
    """Layers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 8)
        self.place = nn.Parameter(torch.randn(1, 6, 8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 6, 2)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x) + self.place
        h = self.attention(h, h, h, need_weights=False)[0]
        return self.head(self.up(h.mT).mT.mean(1))


TOKENS = torch.randint(0, 10, (5, 6), generator=torch.Generator().manual_seed(0))


def test_output_channels_are_found_in_layers_of_every_kind() -> None:
    done = quantize(Mixed().eval(), [TOKENS], Quantize(bits=4, gptq=True))
    shapes = {key: tuple(coding.scale.shape) for key, (coding,) in codings_of(done.model).items()}
    assert shapes == {
        "table.weight": (10, 1),
        "attention.in_proj_weight": (24, 1),
        "attention.out_proj.weight": (8, 1),
        "up.weight": (1, 6, 1),
        "head.weight": (3, 1),
    }
    assert ("place", "Mixed is no layer with a weight matrix") in done.skipped
    told = {note.split("'")[1] for note in done.notes if "rounded to nearest" in note}
    assert told == {"table.weight", "attention.in_proj_weight", "attention.out_proj.weight", "up.weight"}
    assert done.model(TOKENS).shape == (5, 3)


def test_groups_that_do_not_fit_are_said_to_be_channels() -> None:
    done = quantize(net(), step=Quantize(granularity="per_group?group_size=8"))
    assert codings_of(done.model)["0.weight"][0].granularity == q.PerChannel()
    assert codings_of(done.model)["7.weight"][0].granularity == q.PerGroup(8)
    assert "'0.weight' has a scale per channel: 27 inputs can't be cut into groups of group_size=8" in done.notes


def test_ends_have_bits_of_their_own() -> None:
    done = quantize(net(), step=Quantize(method="binary", ends_bits=8))
    kinds = {key: coding.settings().get("bits") for key, (coding,) in codings_of(done.model).items()}
    assert kinds == {"0.weight": 8, "3.weight": None, "7.weight": 8}


def test_what_is_ignored_or_coded_stays() -> None:
    first = quantize(net(), step=Quantize(bits=4, ignore=("7",)))
    assert first.skipped == (("7.weight", "ignored"),)
    again = quantize(first.model, step=Quantize(bits=2))
    assert dict(again.skipped) == {"0.weight": "coded already", "3.weight": "coded already"}
    assert again.edit is not None
    assert list(again.edit.weights) == ["7.weight"]


@pytest.mark.parametrize("gptq", [False, True])
@pytest.mark.parametrize("method", ["symmetric", "affine", "ternary"])
def test_masked_weights_stay_zero(method: str, gptq: bool) -> None:
    model = net()
    for key, weight in codable(model)[0].items():
        attach_(model, key, Mask(weight.abs() > weight.abs().median()))
    zeros = {key: weight == 0 for key, weight in codable(model)[0].items()}
    done = quantize(model, BATCHES, Quantize(method=method, bits=4, gptq=gptq))
    for key, weight in codable(done.model)[0].items():
        assert bool((weight[zeros[key]] == 0).all())
    binary = quantize(model, BATCHES, Quantize(method="binary"))
    assert {reason for _, reason in binary.skipped} == {"masked, and binary weights have no zero"}


def test_it_composes_with_pruning_before_and_after(tmp_path: Path) -> None:
    dense = net()
    first = secateur.plan(dense, X[:1], secateur.Budget(width=0.75))
    done = quantize(secateur.apply(dense, first), BATCHES, Quantize(bits=4, gptq=True))
    second = secateur.plan(done.model, X[:1], secateur.Budget(width=0.5))
    small = secateur.apply(done.model, second)
    edits = Edits((Prune(first), done.edit, Prune(second)))
    folder = secateur.save(small, tmp_path / "small", plan=edits, inputs=X[:1])
    assert torch.equal(secateur.load(folder, net)(X), small(X))


def test_training_on_is_quantization_aware() -> None:
    done = quantize(net(), step=Quantize(method="ternary"))
    losses = losses_in_training(done.model, 60)
    assert losses[-1] < 0.8 * losses[0]
    for key, (coding,) in codings_of(done.model).items():
        weight = codable(done.model)[0][key]
        assert all(len(row.unique()) <= 3 for row in coding.granularity.rows(weight))


CONV = nn.Conv2d(4, 6, 3, groups=2, padding=1)
LAYERS = {"linear": (nn.Linear(12, 6), (40, 12)), "conv": (CONV, (10, 4, 5, 5))}


def output_loss(layer: nn.Module, weight: Tensor, x: Tensor) -> float:
    """Slow and obvious: what the layer's outputs lose."""
    before = layer(x)
    changed = torch.func.functional_call(layer, {"weight": weight}, (x,))
    return float((before - changed).square().sum().detach())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("granularity", [q.PerTensor(), q.PerChannel(), q.PerGroup(6)], ids=str)
@pytest.mark.parametrize("make", [q.Symmetric.fit, q.Affine.fit, q.Ternary.fit, q.Binary.fit])
def test_gptq_loses_less_of_the_outputs_than_rounding(kind: str, granularity: q.Granularity, make: Any) -> None:
    module, shape = LAYERS[kind]
    ratios = []
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
        x = torch.randn(shape, generator=generator)
        x = x @ torch.randn(shape[-1], shape[-1], generator=generator)
        layer = Layer("weight", module)
        settings = (3,) if "bits" in make.__code__.co_varnames else ()
        fit = lambda w, g: make(w, g, *settings)  # noqa: E731, B023
        coding = fit(layer.weight, granularity)
        nearest = coding(layer.weight).detach()
        found = gptq(layer, gram(layer.rows(x)).double(), coding, fit, damping=1e-4)
        assert torch.equal(coding(found).detach(), found)
        ratios.append(output_loss(module, found, x) / output_loss(module, nearest, x))
    assert max(ratios) <= 1 + 1e-5
    assert sum(ratios) / len(ratios) < 0.98


def test_gptq_is_rounding_where_inputs_are_unrelated() -> None:
    layer = Layer("weight", nn.Linear(8, 3))
    coding = q.Symmetric.fit(layer.weight, q.PerChannel(), 3)
    found = gptq(layer, torch.eye(8).double()[None], coding, lambda w, g: q.Symmetric.fit(w, g, 3))
    assert torch.equal(found, coding(layer.weight).detach())


def test_the_report_says_what_gptq_saved() -> None:
    done = quantize(net(), BATCHES, Quantize(bits=2, gptq=True))
    facts = list(done.facts["layers"].values())
    assert all(0 < fact["output_error"] <= fact["output_error_nearest"] for fact in facts)
    assert any(fact["output_error"] < 0.9 * fact["output_error_nearest"] for fact in facts)


def test_it_is_a_step_and_refuses_nonsense() -> None:
    assert STEPS["quantize"] is Quantize
    assert isinstance(Quantize(), Step)
    for wrong in (
        {"bits": 1},
        {"ends_bits": 9},
        {"method": "mask"},
        {"damping": 0.0},
        {"granularity": "per_group?x=1"},
    ):
        with pytest.raises(ConfigError):
            Quantize(**wrong)
    with pytest.raises(DataError, match="gptq is measured on data"):
        quantize(net(), step=Quantize(gptq=True))
    with pytest.raises(GroupError, match=r"What '0\.weight' reads holds NaN"):
        quantize(net(), [X / 0], Quantize(gptq=True))
    broken = net()
    broken[3].weight.data[0] = torch.nan
    with pytest.raises(ConfigError, match=r"'3\.weight': Values that are NaN"):
        quantize(broken)
