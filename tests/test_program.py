"""Laws of a record that runs as a program: on random networks, on a few real ones, and where it must refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture import capture
from secateur.errors import CaptureError
from secateur.program import Program

from .laws import networks
from .laws.pruned import Pristine, run
from .laws.settings import some


def program_of(model: nn.Module, inputs: Any) -> Program:
    return Program(model.eval(), capture(model, inputs, is_fake=False))


def others(inputs: Any, seed: int) -> Any:
    """Inputs of the same shapes with other values."""
    generator = torch.Generator().manual_seed(seed)

    def other(t: Tensor) -> Tensor:
        if t.dtype.is_floating_point:
            return torch.randn(t.shape, generator=generator, dtype=t.dtype)
        return torch.randint(0, networks.VOCABULARY, t.shape, generator=generator)

    return pytree.tree_map_only(Tensor, other, inputs)


def assert_computes(program: Program, inputs: Any, stops: list[float]) -> None:
    """Run in one go, stopped on the way, and as a fork that leaves its parent alone, a program gives the same."""
    given_ = [t.clone() for t in pytree.tree_leaves(inputs)]
    with torch.no_grad():
        expected = run(program.model, pytree.tree_map_only(Tensor, Tensor.clone, inputs))
        run_ = program.start(inputs)
        for stop in sorted(stops):
            run_.advance(int(stop * len(program.trace.ops)))
            forked = run_.fork()
            for a, b in zip(forked.finish(), expected, strict=True):
                torch.testing.assert_close(a, b)
        for a, b in zip(run_.finish(), expected, strict=True):
            torch.testing.assert_close(a, b)
    program.check(inputs)
    assert all(torch.equal(a, b) for a, b in zip(pytree.tree_leaves(inputs), given_, strict=True))


@some(30)
@given(networks.programs(), st.lists(st.floats(0, 1), max_size=2), st.integers(0, 99))
def test_a_program_computes_what_the_model_does(network: networks.Program, stops: list[float], seed: int):
    model, inputs = networks.build(network)
    before = Pristine.of(model)
    assert_computes(program_of(model, inputs), others(inputs, seed), stops)
    before.check(model)


@some(10)
@given(networks.programs(), st.integers(0, 99))
def test_gradients_flow_as_in_the_forward(network: networks.Program, seed: int):
    model, inputs = networks.build(network)
    program, x = program_of(model, inputs), others(inputs, seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected, found = (
        torch.autograd.grad(sum(t.square().sum() for t in outputs if t.requires_grad), parameters, allow_unused=True)
        for outputs in (run(model, x), program.start(x).finish())
    )
    for a, b in zip(expected, found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b)


def narrowed(inputs):
    """Float32 in place of float64."""
    return pytree.tree_map_only(Tensor, lambda t: t.float() if t.is_floating_point() else t, inputs)


@some(10)
@given(networks.programs(), st.integers(0, 99))
def test_products_in_bfloat16_give_nearly_the_same_and_gradients(network: networks.Program, seed: int):
    model, inputs = networks.build(network)
    model, inputs = model.float(), narrowed(inputs)
    program, x = program_of(model, inputs), others(inputs, seed)
    narrow = program.start(x).fork(dtype=torch.bfloat16)
    for a, b in zip(run(model, x), outputs := narrow.finish(), strict=True):
        assert (a - b.float()).norm() <= 0.1 * a.norm() + 1e-6
    sum(t.float().square().sum() for t in outputs if t.requires_grad).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


class WritesThroughViews(nn.Module):
    """Changes its input, and a tensor through a view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        whole = self.linear(x)
        part = whole[:, :2]
        part.add_(1).mul_(0.5)
        whole[:, 3] = x[:, 0]
        return whole * 2


class Convolutional(nn.Sequential):
    """In-place activations and a residual sum in place."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, padding=1))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self[1](self[0](x))
        z = self[3](self[2](y))
        z += y
        return self.linear(nn.functional.relu_(z).mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[0]


SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 11}


def timm_model(name: str, side: int, **options: Any) -> tuple[nn.Module, Tensor]:
    timm = pytest.importorskip("timm")
    model = timm.create_model(name, pretrained=False, img_size=side, **options)
    return model, torch.randn(2, 3, side, side)


def language_model(name: str, **options: Any) -> tuple[nn.Module, Any]:
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(**(SIZES | options))
    ids = torch.randint(0, networks.VOCABULARY, (2, 6))
    model = getattr(transformers, f"{name}Model")(config)
    return model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def torchvision_model(name: str) -> tuple[nn.Module, Tensor]:
    models = pytest.importorskip("torchvision.models")
    return models.get_model(name, weights=None), torch.randn(2, 3, 32, 32)


REAL = {
    "writes through views": lambda: (WritesThroughViews(), torch.randn(3, 4)),
    "convolutions in place": lambda: (Convolutional(), torch.randn(2, 3, 6, 6)),
    "recurrent": lambda: (Recurrent(), torch.randn(2, 5, 4)),
    "torch transformer": lambda: (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.randn(2, 5, 8)),
    "mobilenet": lambda: torchvision_model("mobilenet_v3_small"),
    "vit": lambda: timm_model("vit_tiny_patch16_224", 32, depth=2, embed_dim=24),
    "swin": lambda: timm_model("swin_tiny_patch4_window7_224", 56, depths=(1, 2), num_heads=(2, 4), embed_dim=8),
    "bert": lambda: language_model("Bert"),
    "llama": lambda: language_model("Llama", hidden_size=24, num_attention_heads=6, num_key_value_heads=2),
}


@pytest.mark.parametrize("name", REAL)
def test_programs_of_real_networks(name: str):
    torch.manual_seed(0)
    model, inputs = REAL[name]()
    program = program_of(model, pytree.tree_map_only(Tensor, Tensor.clone, inputs))
    before = Pristine.of(model)
    x = {**inputs, "input_ids": others(inputs["input_ids"], 1)} if isinstance(inputs, dict) else others(inputs, 1)
    assert_computes(program, x, [0.3, 0.7])
    before.check(model)
    sum(t.square().sum() for t in program.start(x).finish()).backward()
    unread = set(program.trace.unread)
    assert all((p.grad is not None) != (key in unread) for key, p in model.named_parameters())


def test_the_example_inputs_are_not_written_to():
    model, x = REAL["writes through views"]()
    before = x.clone()
    program_of(model, x)
    assert torch.equal(x, before)


class MakesItsWeights(nn.Module):
    """Reads weights that it makes of others, one of them by writing into a copy, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        self.other = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        masked = self.other.weight.clone()
        masked[0].zero_()
        so_far = self.calls * 1
        self.calls.add_(1)
        return nn.functional.linear(self.linear(x), masked) + so_far - self.calls


@pytest.mark.parametrize("is_late", [False, True])
def test_what_is_made_of_weights_follows_them(is_late: bool):
    model, x = MakesItsWeights(), torch.randn(3, 4)
    program = program_of(model, x)
    run_ = program.start(x)
    if is_late:
        run_.advance(next(op.index for op in program.trace.ops if "addmm" in str(op.target)))
    gain = program.trace.tensors["linear.parametrizations.weight.original0"]
    double = run_.fork({gain.index: 2 * program.fixed[gain.index]})
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(run_.fork().finish()[0], expected)
        program.fixed[gain.index].mul_(2)
        expected = model(x)
        torch.testing.assert_close(run_.finish()[0], expected)
        program.fixed[gain.index].div_(2)
        torch.testing.assert_close(double.finish()[0], expected)


def test_a_run_stops_forgets_and_reads_other_weights():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(3, 4)
    program = program_of(model, x)
    run_ = program.start(x)
    hidden = next(v for op in program.trace.ops for v in op.outputs if v is not None and v.shape == (3, 5))
    last = program.trace.ops[-1]
    run_.advance(last.index)
    torch.testing.assert_close(run_[next(v for v in last.values if v.shape == (3, 5))], model[:2](x))
    assert hidden not in run_
    with pytest.raises(KeyError):
        run_[hidden]
    bias = program.trace.tensors["2.bias"]
    other = run_.fork({bias.index: model[2].bias + 1})
    torch.testing.assert_close(other.finish()[0], model(x) + 1)
    torch.testing.assert_close(run_.finish()[0], model(x))


class GoesByWeights(nn.Module):
    """Branches by what it computes, by what it is given, or picks rows by a learned score."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        if self.how == "branches by an activation":
            return y * 2 if y.sum() > 0 else y
        if self.how == "branches by an input":
            return y * 2 if x.sum() > 0 else y
        return y[y[:, 0] > 0]


@pytest.mark.parametrize("how", ["branches by an activation", "picks rows by an activation"])
def test_a_forward_that_goes_by_learned_values_is_refused(how: str):
    with pytest.raises(CaptureError, match="chooses by values that it computes"):
        program_of(GoesByWeights(how), torch.ones(3, 4))


def test_a_forward_that_goes_by_the_values_of_its_inputs_is_refused():
    program = program_of(GoesByWeights("branches by an input"), torch.ones(3, 4))
    program.check(torch.ones(3, 4) / 2)
    with pytest.raises(CaptureError, match="depends on the values of its inputs"):
        program.check(-torch.ones(3, 4))


def test_batches_of_another_shape_are_refused():
    program = program_of(nn.Linear(4, 2), torch.ones(3, 4))
    with pytest.raises(CaptureError, match=r"shapes \[\(2, 4\)\]; the first had \[\(3, 4\)\]"):
        program.start(torch.ones(2, 4))
