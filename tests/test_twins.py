"""Twins: what operators make of them has the form that they give on real tensors, and nothing real is touched."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.capture import capture
from secateur.choices import may_decide
from secateur.skeleton import Skeleton
from secateur.twins import Twin, run, twin

from .dims.rule_cases import CASES, T

aten = torch.ops.aten
NORMS = (aten.native_batch_norm.default,)
FORMED = [c for c in CASES if c.run is None and not may_decide(c.op)]


def forms(out) -> list[tuple]:
    """Shape, strides of the axes that have any say, and dtype of each tensor."""
    return [
        (t.shape, [s for s, n in zip(t.stride(), t.shape, strict=True) if n > 1 and t.numel()], t.dtype)
        for t in pytree.tree_leaves(out)
        if isinstance(t, Tensor)
    ]


@pytest.mark.parametrize("case", FORMED, ids=str)
def test_a_twin_becomes_what_the_tensor_becomes(case):
    def call(make) -> list[tuple]:
        args, kwargs = pytree.tree_map(
            lambda a: make(a.make(torch.Generator().manual_seed(0))) if isinstance(a, T) else a,
            (case.args, case.kwargs),
        )
        return forms((case.op if make is not twin else lambda *a, **k: run(case.op, a, k))(*args, **kwargs))

    expected = call(lambda t: t)
    if case.op in NORMS and all(shape == (0,) for shape, *_ in expected[1:]):
        expected = expected[:1]  # in eval mode they save nothing, and twins leave it out
    assert call(twin) == expected  # worked out
    assert call(twin) == expected  # remembered


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_are_those_of_the_kernels(layout, channels):
    x = torch.randn(2, channels, 5, 5).to(memory_format=layout)
    net = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)).eval()
    with torch.no_grad():
        real, formed = x, twin(x)
        for layer in net.to(memory_format=layout):
            real = layer(real)
            formed = layer(formed) if isinstance(layer, nn.ReLU) else _apply(layer, formed)
            assert forms(formed) == forms(real)


def _apply(layer: nn.Module, x: Tensor) -> Tensor:
    """A layer on twins of its tensors too."""
    tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    return torch.func.functional_call(layer, {key: twin(t) for key, t in tensors.items()}, (x,))


def test_operators_in_place_give_the_twin_itself():
    x = twin(torch.zeros(2, 3))
    assert run(aten.relu_.default, (x,), {}) is x
    assert run(aten.unsqueeze_.default, (x, 0), {}) is x
    assert x.shape == x.form.shape == (1, 2, 3)
    with pytest.raises(RuntimeError, match="broadcast shape"):
        run(aten.add_.Tensor, (twin(torch.zeros(3)), twin(torch.zeros(2, 3))), {})


def test_sums_of_unlike_dtypes_and_numbers_are_told_apart():
    ints = twin(torch.zeros(2, dtype=torch.long))
    results = [run(aten.mul.Tensor, (ints, n), {}).dtype for n in (1, 1.0, True, 1)]
    assert results == [torch.long, torch.float32, torch.long, torch.long]


class Writer(nn.Module):
    """Writes into its own tensors, as moving averages and clamped weights do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("count", torch.zeros(4))

    def forward(self, x):
        self.count.view(2, 2).add_(1)
        self.linear.weight.clamp_(-0.01, 0.01)
        return self.linear(x) + self.count


def test_a_capture_writes_into_nothing():
    model, x = Writer(), torch.randn(2, 3)
    before = {key: t.clone() for key, t in model.state_dict().items()}
    capture(model, x)
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_a_skeleton_takes_on_widths_and_gives_them_back():
    model = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 2))
    bones = Skeleton(model)
    first, *_ = bones.model
    weight = first.weight
    assert type(weight) is Twin
    assert isinstance(weight, nn.Parameter)
    bones.resize({"0.weight": (4, 3), "0.bias": (4,), "1.weight": (2, 4)}, {("0", "out_features"): (8, 4)})
    assert (first.weight is weight, tuple(weight.shape), first.out_features) == (True, (4, 3), 4)
    assert capture(bones.model, torch.zeros(5, 3)).outputs[0].shape == (5, 2)
    bones.resize({}, {})
    assert (tuple(weight.shape), first.out_features) == ((8, 3), 8)
    assert [v.shape for v in capture(bones.model, torch.zeros(5, 3)).outputs] == [(5, 2)]
    assert model[0].weight.shape == (8, 3)


def test_places_are_the_innermost_module_and_the_innermost_line_outside_torch():
    model = nn.Sequential(nn.Sequential(nn.Linear(3, 4)), Twice())
    record = capture(model, torch.zeros(1, 3))
    assert [op.fqn for op in record.ops] == ["0.0", "0.0", "1"]
    line = Twice.forward.__code__.co_firstlineno + 1
    assert [op.location for op in record.ops][1:] == [record.ops[0].location, f"test_twins.py:{line}"]
    assert record.ops[0].location.startswith("torch/nn/modules/linear.py:")


class Twice(nn.Module):
    def forward(self, x):
        return x * 2


class Kinds(nn.Module):
    """Loops over a set, whose elements fall on one place of its table: which comes first depends on what came first."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = set([7, 15])  # noqa: C405
        self.weight = nn.Parameter(torch.ones(3, 20))

    def forward(self, x: Tensor) -> Tensor:
        for kind in self.kinds:
            x = x + (self.weight[:, :kind]).sum()
        return x


def test_a_skeleton_loops_over_a_set_as_the_model_does() -> None:
    """Gemma 4: a deep copy's rotary tables came in another order, on some runs of Python and not on others."""
    net, x = Kinds(), torch.zeros(2)
    assert list(copy.deepcopy(net).kinds) != list(net.kinds)
    expected = [[v and v.shape for v in op.outputs] for op in capture(net, x).ops]
    assert [[v and v.shape for v in op.outputs] for op in capture(Skeleton(net).model, x).ops] == expected


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 1, 4, 5), (2, 3, 1, 1), (0, 3, 4, 5)])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_concatenations_are_laid_out_as_torch_lays_them_out(layout, shape, dim):
    x = torch.randn(shape).to(memory_format=layout)
    y = torch.cat([x, x], dim).transpose(2, 3)
    for tensors in ([x, x], [x, x.double()], [x, y.transpose(2, 3)], [y, y], [x, torch.randn(0)], [x]):
        assert forms(run(aten.cat.default, ([twin(t) for t in tensors], dim), {})) == forms(torch.cat(tensors, dim))


def test_tensors_that_do_not_fit_are_refused_as_torch_refuses_them():
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        run(aten.cat.default, ([twin(torch.zeros(2, 3)), twin(torch.zeros(3, 3))], 1), {})
