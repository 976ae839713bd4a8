"""Quantized inputs of layers: their levels, their gradients, and that every form of the model keeps them."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.edits import Edits, Prune
from secateur.errors import ConfigError, DataError, PlanError
from secateur.quantize.inputs import InputLevels, attach_inputs_, input_quantizers
from secateur.steps import Context, Done, QuantizeInputs, Step
from secateur.steps.order import check_order

from .small_cnn import BATCHES, X, losses_in_training, net

WAYS = [
    QuantizeInputs(),
    QuantizeInputs(method="symmetric", bits=4, calibration="mse"),
    QuantizeInputs(calibration="percentile?percentile=99", bits=6),
    QuantizeInputs(calibration="kl"),
    QuantizeInputs(per="batch"),
    QuantizeInputs(per="token"),
    QuantizeInputs(method="symmetric", per="token"),
]
each_way = pytest.mark.parametrize("step", WAYS, ids=lambda s: f"{s.method}{s.bits}-{s.per}-{s.calibration[:4]}")


def carry_out(step: QuantizeInputs, model: nn.Module, batches: list[Any] = BATCHES) -> Done:
    return step.run(model, Context(dense=model, inputs=lambda n: batches[0][:n], calibration=lambda: batches))


def plainly(x: Tensor, low: Tensor, high: Tensor, bits: int, is_symmetric: bool) -> Tensor:
    """Slow and obvious: the nearest of a list of levels."""
    if is_symmetric:
        top = 2 ** (bits - 1) - 1
        levels = torch.arange(-top, top + 1) * torch.maximum(-low, high) / top
    else:
        scale = (high.clamp_min(0) - low.clamp_max(0)) / (2**bits - 1)
        levels = ((low.clamp_max(0) / scale).round() + torch.arange(2**bits)) * scale
    return levels[(x.flatten()[:, None] - levels).abs().argmin(1)].reshape(x.shape)


@pytest.mark.parametrize("method", ["symmetric", "affine"])
@pytest.mark.parametrize("per", ["static", "batch", "token"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_each_input_is_on_the_nearest_level_of_its_range(method: str, per: str, bits: int) -> None:
    levels = InputLevels(method=method, bits=bits, per=per)
    x = X.double() + 0.3
    quantizer = levels.module(net()[0].double(), x.flatten())
    parts = list(x.split(1)) if per == "token" else [x]
    expected = [plainly(part, part.min(), part.max(), bits, method == "symmetric") for part in parts]
    torch.testing.assert_close(quantizer(x).detach(), torch.cat(expected))


def test_a_token_of_a_linear_layer_is_a_vector_of_features() -> None:
    quantizer = InputLevels(per="token", bits=3).module(nn.Linear(8, 2))
    torch.testing.assert_close(quantizer(X)[1, 2, 3], quantizer(X[1, 2, 3]))


@each_way
def test_every_form_of_the_model_keeps_them(step: QuantizeInputs, tmp_path: Path) -> None:
    model = net()
    done = carry_out(step, model)
    assert not input_quantizers(model)
    assert list(input_quantizers(done.model)) == list(done.facts["layers"]) == ["0", "3", "7"]
    assert done.skipped == ()
    expected = done.model(X)
    assert 0 < float((expected - model(X)).detach().abs().max()) < 0.2
    folder = secateur.save(done.model, tmp_path / "small", plan=Edits().then(done.edit), inputs=X)
    for again in (copy.deepcopy(done.model), secateur.load(folder, net)):
        assert torch.equal(again(X), expected)
        for quantizer in input_quantizers(again).values():
            quantizer.register_forward_hook(lambda *_: torch.zeros(()))  # a copy's own, not the first one's
    assert torch.equal(done.model(X), expected)
    assert Edits.from_json(Edits((done.edit,)).to_json()) == Edits((done.edit,))


@each_way
def test_pruning_afterwards_is_proven(step: QuantizeInputs, tmp_path: Path) -> None:
    """`apply` raises where the numbers are not those of the original with the readers of what is dropped at zero."""
    done = carry_out(step, net())
    plan = secateur.plan(done.model, X, secateur.Budget(width=0.5))
    small = secateur.apply(done.model, plan, inputs=X)
    assert len(small[3].weight) < 16
    folder = secateur.save(small, tmp_path / "small", plan=Edits((done.edit, Prune(plan))), inputs=X)
    assert torch.equal(secateur.load(folder, net)(X), small(X))


def test_the_proof_follows_how_the_pruned_model_rounds() -> None:
    """In float32, of a hundred thousand values some are rounded up in one run and down in the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 4, 3)).eval()
    x = torch.randn(4, 3, 24, 24)
    done = carry_out(QuantizeInputs(bits=8), model, [x])
    plan = secateur.plan(done.model, x, secateur.Budget(width=0.5))
    small = secateur.apply(done.model, plan, verify=False)
    assert secateur.verify(done.model, small, plan, x).is_ok
    with torch.no_grad():
        input_quantizers(small)["2"].gain.add_(0.1)
    assert not secateur.verify(done.model, small, plan, x).is_ok


@each_way
@pytest.mark.skipif(find_spec("onnxruntime") is None, reason="no onnx")
def test_exported_files_round_as_the_model_does(step: QuantizeInputs, tmp_path: Path) -> None:
    """The export compares the file's outputs with the model's."""
    done = carry_out(step, net())
    assert secateur.export(done.model, tmp_path / "small.onnx", X).path.exists()


@each_way
def test_training_goes_straight_through(step: QuantizeInputs) -> None:
    done = carry_out(step, net())
    losses = losses_in_training(done.model, 40)
    assert losses[-1] < 0.8 * losses[0]
    gains = [q.gain for q in input_quantizers(done.model).values() if step.per == "static"]
    assert all(bool((gain != 0).all()) for gain in gains)


def test_gradients_pass_where_inputs_are_in_range() -> None:
    x = torch.tensor([-3.0, -0.9, 0.4, 1.9, 5.0], requires_grad=True)
    InputLevels(bits=4).module(nn.Linear(5, 1), torch.tensor([-1.0, 2.0]))(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    x.grad = None
    InputLevels(bits=4, per="batch").module(nn.Linear(5, 1))(x).sum().backward()
    assert x.grad.tolist() == [1] * 5


class Attending(nn.Module):
    """An encoder layer with a fused path, an attention that reads a weight by itself, and a call by keyword."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.unused = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(input=self.encoder(self.table(x)).mean(1))


TOKENS = torch.randint(0, 10, (5, 6), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("per", ["static", "token"])
def test_weights_that_are_read_without_a_call_are_skipped(per: str) -> None:
    done = carry_out(QuantizeInputs(bits=3, per=per, ignore=("*linear2",)), Attending().eval(), [TOKENS])
    reason = "the forward doesn't call it with numbers"
    assert done.skipped == (
        ("encoder.linear2", "ignored"),
        ("encoder.self_attn.out_proj", reason),
        ("unused", reason),
    )
    assert list(input_quantizers(done.model)) == ["encoder.linear1", "head"]
    seen: list[Tensor] = []
    for quantizer in input_quantizers(done.model).values():
        quantizer.register_forward_hook(lambda module, args, out: seen.append(out))
    with torch.no_grad():
        done.model(TOKENS)
    assert [len(out[0, 0].unique() if out.ndim == 3 else out[0].unique()) <= 8 for out in seen] == [True, True]


def test_half_precision_keeps_its_dtype_and_ranges_in_float32() -> None:
    model = net().bfloat16()
    done = carry_out(QuantizeInputs(), model, [X.bfloat16()])
    assert done.model(X.bfloat16()).dtype == torch.bfloat16
    assert input_quantizers(done.model)["0"].scale.dtype == torch.float32


def test_it_refuses_what_makes_no_sense() -> None:
    assert isinstance(QuantizeInputs(), Step)
    for wrong in ({"bits": 9}, {"method": "binary"}, {"per": "channel"}, {"calibration": "mean"}):
        with pytest.raises(secateur.SecateurError):
            QuantizeInputs(**wrong)
    with pytest.raises(DataError, match="Static ranges are measured on data"):
        QuantizeInputs().run(net(), Context(dense=net(), inputs=lambda n: X[:n], calibration=list))
    with pytest.raises(ConfigError, match="has no layers to quantize the inputs of"):
        carry_out(QuantizeInputs(ignore=("*",)), net())
    with pytest.raises(ConfigError, match="'0': Values that are NaN"):
        carry_out(QuantizeInputs(), net(), [X / 0])
    done = carry_out(QuantizeInputs(ignore=("3",)), net())
    assert dict(carry_out(QuantizeInputs(bits=4), done.model).skipped)["7"] == "its inputs are quantized already"
    with pytest.raises(PlanError, match="The inputs of '0' are quantized already"):
        done.edit.replay(done.model)
    with pytest.raises(PlanError, match="has no layer '1' to quantize"):
        attach_inputs_(net(), "1", nn.Identity())
    with pytest.raises(ConfigError, match=r"factorize\) can't follow step 1 \(quantize_inputs\)"):
        check_order([QuantizeInputs(), secateur.steps.Factorize(energy=0.5)])
