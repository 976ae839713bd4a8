"""Readers: phi(x) times the weight is what the operator gives, and columns of phi are units of a group."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.laws import networks
from tests.laws.settings import some
from torch import Tensor, nn

from secateur.capture import capture
from secateur.compensation.readers import Reader, Thin, find_readers
from secateur.graph import trace
from secateur.program import Program
from secateur.record import Value
from secateur.tensors import named_tensors

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    n = draw(st.integers(1, 3))
    groups, i, o = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    per_axis = st.tuples(*[st.integers(1, 3)] * n)
    kernel, stride, dilation = draw(per_axis), draw(per_axis), draw(per_axis)
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 2)] * n), st.just("same")))
    if padding == "same":
        stride = (1,) * n
    model = CONVOLUTIONS[n](
        groups * i, groups * o, kernel, stride, padding, dilation, groups=groups, bias=draw(st.booleans())
    )
    space = [d * (k - 1) + draw(st.integers(1, 4)) for d, k in zip(dilation, kernel, strict=True)]
    return model, torch.randn(2, groups * i, *space, dtype=torch.float64)


class Conv1D(nn.Module):
    """GPT-2's layout: the weight is (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 4), self.weight).view(*x.shape[:-1], 3)


class Product(nn.Module):
    """A weight without a bias, times an activation."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        weights = {
            "mm": self.weight,
            "T": self.weight.T,
            "mT": self.weight.mT,
            "transpose": self.weight.transpose(-1, 0),
        }
        return x @ weights[self.how]


MATRICES = {
    "linear": (nn.Linear(4, 3), (5, 4)),
    "linear without bias": (nn.Linear(4, 3, bias=False), (5, 4)),
    "linear on tokens": (nn.Linear(4, 3), (2, 5, 4)),
    "linear on tokens without bias": (nn.Linear(4, 3, bias=False), (2, 5, 4)),
    "linear on images": (nn.Linear(4, 3), (2, 3, 5, 4)),
    "linear of one row": (nn.Linear(4, 3), (4,)),
    "GPT-2": (Conv1D(), (2, 5, 4)),
    **{f"mm, {how}": (Product(how), (5, 4)) for how in ("mm", "T", "mT", "transpose")},
}


def seen(model: nn.Module, x: Tensor) -> tuple[Reader, Tensor, Tensor]:
    """The one reader of a model with what it reads and gives."""
    program = Program(model, capture(model, x, is_fake=False))
    (reader,), skipped = find_readers(program.trace)
    assert skipped == []
    run = program.start(x)
    run.advance(reader.op)
    taken = run[reader.x].detach()
    run.step(program.trace.ops[reader.op])
    return reader, taken, run[reader.y].detach()


def assert_reads(model: nn.Module, x: Tensor) -> None:
    model = model.double().eval()
    reader, taken, y = seen(model, x)
    tensors = named_tensors(model)
    weight = reader.matrix(tensors[reader.weight])
    phi = reader.inputs(taken)
    found = torch.einsum("ngk,gok->ngo", phi, weight)
    if reader.shift is not None:
        found += tensors[reader.shift].detach().view(1, *weight.shape[:2])
    torch.testing.assert_close(found, reader.outputs(y))
    assert len(phi) == reader.n_rows
    assert torch.equal(reader.weight_of(weight, tensors[reader.weight]), tensors[reader.weight])


def assert_thins(model: nn.Module, x: Tensor, offset: int) -> None:
    reader, taken, y = seen(model.double().eval(), x)
    window = reader.window
    space = y.shape[:1] if window is None else (y.shape[0], *y.shape[2:])
    axes = range(1) if window is None else range(1, len(space))
    step = min(3, *(space[axis] for axis in axes))
    thin = Thin(step, offset % step)
    rows = torch.arange(len(reader.inputs(taken))).view(*space, -1)
    for axis in axes:
        rows = rows.index_select(axis, torch.arange(space[axis])[thin.offset :: thin.step])
    assert torch.equal(reader.inputs(taken, thin), reader.inputs(taken)[rows.flatten()])
    assert torch.equal(reader.outputs(y, thin), reader.outputs(y)[rows.flatten()])


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@some(60)
@given(convolutions(), st.integers(0, 2))
def test_convolutions_are_windows_times_weights(case: tuple[nn.Module, Tensor], offset: int):
    assert_reads(*case)
    assert_thins(*case, offset)


@pytest.mark.parametrize("name", MATRICES)
def test_matrix_products_are_rows_times_weights(name: str):
    model, shape = MATRICES[name]
    x = torch.randn(shape, dtype=torch.float64)
    assert_reads(model, x)
    assert_thins(model, x, 1)


def test_a_product_that_keeps_its_axes_counts_every_row():
    y = Value(1, (2, 5, 3), torch.float32, "op")
    assert Reader(0, Value(0, (2, 5, 4), torch.float32, "op"), y, "weight").n_rows == 10


@pytest.mark.parametrize("max_rows", [1, 7, 100, 10**6])
def test_thinning_leaves_about_as_many_rows_as_wanted_and_at_least_one_of_each_batch(max_rows: int):
    reader, x, _ = seen(nn.Conv2d(2, 3, 3).double(), torch.randn(2, 2, 11, 9, dtype=torch.float64))
    n = sum(len(reader.inputs(x, reader.thin(i, 4, max_rows))) for i in range(4))
    assert 4 <= n <= 4 * reader.n_rows
    if max_rows > 4 * reader.n_rows:
        assert n == 4 * reader.n_rows
    elif max_rows >= 100:
        assert max_rows / 2 <= n <= max_rows * 4


def test_a_mean_of_a_batch_norm_shifts_a_convolution_without_bias():
    norm = nn.BatchNorm2d(3).eval()
    for bias, shift in ((False, "1.running_mean"), (True, "0.bias")):
        model = nn.Sequential(nn.Conv2d(2, 3, 3, bias=bias), norm).eval()
        (reader,), _ = find_readers(capture(model, torch.zeros(1, 2, 4, 4), is_fake=False))
        assert (reader.shift, reader.is_mean) == (shift, not bias)


@some(30)
@given(networks.programs())
def test_columns_are_the_units_that_members_say(network: networks.Program):
    """The elements of the weight in the columns of a unit are those of its slices along the axis that is read."""
    model, inputs = networks.build(network)
    graph = trace(model, inputs)
    tensors = named_tensors(model)
    readers, _ = find_readers(graph.trace)
    for reader, group in itertools.product(readers, graph.prunable):
        weight = tensors[reader.weight]
        elements = torch.arange(weight.numel()).view(weight.shape)
        axis = 0 if reader.window is None and reader.is_transposed else 1
        members = [m for m in group.members if m.key == reader.weight and m.axis == axis]
        columns = reader.columns(group, weight.shape)
        assert (columns is None) == (not members)
        for unit in range(group.size if members else 0):
            expected = torch.cat([m.view(elements)[unit].flatten() for m in members])
            found = reader.matrix(elements)[:, :, columns[unit]].long().flatten()
            assert torch.equal(found.sort().values, expected.sort().values)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return nn.functional.linear(x, weight, bias)


class Odd(nn.Module):
    """A plain layer before one that no single solution fits, by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.plain = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.embed = nn.Embedding(5, 4)
        self.up = nn.ConvTranspose1d(4, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "applied twice":
            return self.plain(self.plain(x))
        if self.how == "tied":
            return linear(x, self.embed.weight) + self.embed.weight[0, 0]
        if self.how == "transposed":
            return self.up(x.unsqueeze(2))
        if self.how == "scaled":
            return torch.addmm(self.up.bias, x, self.plain.weight, beta=0.5)
        if self.how == "unread":
            self.plain(x)
            return x * 2
        shared = self.up.bias if self.how == "shared bias" else self.up.bias * 2
        return linear(x, self.plain.weight, shared) + self.up.bias


SKIPPED = {
    "applied twice": ("plain.weight", "read 2 times, so that no single solution fits"),
    "tied": ("embed.weight", "read 2 times, so that no single solution fits"),
    "transposed": ("up.weight", "transposed convolution"),
    "scaled": ("plain.weight", "a scaled product"),
    "shared bias": ("plain.weight", "its bias is no parameter of its own"),
    "unread": ("plain.weight", "nothing reads what it gives"),
    "computed bias": ("plain.weight", "its bias is no parameter of its own"),
}


@pytest.mark.parametrize("how", SKIPPED)
def test_what_no_single_solution_fits_is_listed(how: str):
    readers, skipped = find_readers(capture(Odd(how), torch.ones(2, 4), is_fake=False))
    assert skipped == [SKIPPED[how]]
    assert [r.weight for r in readers] == ["first.weight"]
