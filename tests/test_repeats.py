"""Calls written down from memory say what running them says, whatever else a forward does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur import repeats
from secateur.attention import ATTENTION
from secateur.capture import capture
from secateur.record import Trace
from secateur.twins import Twin


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Nothing is remembered from other tests."""
    repeats._KNOWN.clear()
    yield
    repeats._KNOWN.clear()


def said(trace: Trace) -> list[tuple]:
    """All that a record says, with values by their numbers."""
    made = [[v and (v.dtype, v.source, v.key, v.number) for v in op.outputs] for op in trace.ops]
    ops = [
        (op.index, op.target, repr(op.args), repr(op.kwargs), repr(op.outputs), op.fqn, op.location, op.chooses_all)
        for op in trace.ops
    ]
    return [*zip(ops, made, strict=True), repr(trace.outputs), repr(trace.inputs), repr(trace.tensors), trace.ended_by]


def unremembered(net: nn.Module, x, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """A record for which every call has run."""
    with monkeypatch.context() as patch:
        patch.setattr(repeats, "_MOST", 0)
        return capture(net, x)


class Forward(nn.Module):
    """A layer of each common kind, and a function of the test's to use them."""

    def __init__(self, code) -> None:
        super().__init__()
        self.code = code
        self.conv, self.norm, self.linear = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.register_buffer("table", torch.arange(8.0))
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor):
        return self.code(self, x * self.scale)  # what inputs alone decide is known, and computed each time


def _twice_autocast(net, x):
    plain = net.linear(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return plain, net.linear(x)


def _attention_in_autocast(net, x):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = F.scaled_dot_product_attention(x, x + 1, x + 2)
    return first, F.scaled_dot_product_attention(x, x + 1, x + 2)


def _with_gradients(net, x):
    with torch.enable_grad():
        return net.linear(x) @ net.linear.weight, net.linear(x)


def _in_place(net, x):
    y = net.norm(net.conv(x))
    view = y[:, :2]
    F.relu(view, inplace=True)
    view += 1
    y.unsqueeze_(0).squeeze_(0)
    return y, view.transpose_(2, 3)


def _masks(net, x):
    mask = torch.ones(x.shape[-1], x.shape[-1]).tril().bool()
    return torch.where(mask, x, x.new_zeros(())), mask.float() * 2, x.masked_fill(mask, -1.0), mask.float() * 2


CODES = {
    "convolutions": lambda net, x: torch.cat([net.conv(x), net.norm(net.conv(x)), F.relu(x)], 1),
    "one tensor twice": lambda net, x: (x + net.linear(x), x + x, x @ x.mT, x @ net.linear(x).mT),
    "attention": lambda net, x: (net.attention(*[x.flatten(0, 1)] * 3)[0], net.attention(*[x.flatten(0, 1) + 1] * 3)),
    "attention on others": lambda net, x: net.attention(x.flatten(0, 1), *[x.flatten(0, 1) + 1] * 2)[0],
    "recurrent": lambda net, x: net.lstm(x.flatten(0, 1))[0],
    "equal numbers": lambda net, x: (net.linear(x) * 1, net.linear(x) * 1.0, net.linear(x) * True, net.table * 1),
    "buffers": lambda net, x: (x * net.table, x * net.table, net.table + 1, net.table * 2),
    "several results": lambda net, x: (*net.linear(x).split(2, -1), *torch.max(net.linear(x), -1), *x.aminmax()),
    "shapes": lambda net, x: net.linear(x).view(x.size(0), -1, *x.shape[2:]).reshape(x.shape[0], x.dim() * 2, -1),
    "indices": lambda net, x: (net.linear(x)[:, 1], net.linear(x)[..., [0, 2]], x[:, :, None]),
    "autocast": _twice_autocast,
    "gradients": _with_gradients,
    "in place": _in_place,
    "masks": _masks,
    "views of parameters": lambda net, x: (x @ net.linear.weight.transpose(-1, -2), net.linear.weight.mT @ x.mT),
    "zeros": lambda net, x: (net.linear(x) * 0.0, net.linear(x) * -0.0, F.pad(x, (1, 1), value=-0.0)),
    "attention in autocast": _attention_in_autocast,
    "known": lambda net, x: (net.table + 1, net.linear(x + net.table.flip(0)), net.linear(net.table)),
    "dropout": lambda net, x: F.dropout(net.linear(x), 0.5, net.training) + F.dropout(x, 0.5, True),
    "dtypes": lambda net, x: (net.linear(x).to(torch.float64) + 1, net.linear(x).half().float(), x.double() + 1),
}


@pytest.mark.parametrize("name", CODES)
def test_a_record_from_memory_says_what_running_says(name, monkeypatch):
    net, x = Forward(CODES[name]), torch.randn(2, 4, 8, 8)
    expected = said(unremembered(net, x, monkeypatch))
    assert not repeats._KNOWN
    assert said(capture(net, x)) == expected  # learnt, and used within one forward
    n_known = len(repeats._KNOWN)
    assert n_known
    assert said(capture(net, x)) == expected  # remembered
    assert len(repeats._KNOWN) == n_known


def test_a_code_line_is_that_of_the_call_and_not_of_the_one_that_was_learnt():
    class Lines(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x)
            return self.b(x)

    first, second = (op for op in capture(Lines(), torch.zeros(1, 4)).ops if "mm" in str(op.target))
    assert (first.fqn, second.fqn) == ("a", "b")
    line_of = [int(op.location.rsplit(":")[1]) for op in (first, second)]
    assert line_of[1] == line_of[0] + 1
    inside = capture(nn.Sequential(nn.Linear(4, 4)), torch.zeros(1, 4)).ops[-1]
    assert inside.location.startswith("torch/nn/modules/linear.py")
    again = capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.zeros(1, 4)).ops[-1]
    assert (again.location, again.fqn) == (inside.location, "1")


def test_switches_that_change_what_a_function_does_are_part_of_its_call():
    net, x = nn.LSTM(8, 8), torch.zeros(3, 1, 8)
    plain = said(capture(net, x))
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(not before)
    try:
        assert said(capture(net, x)) == plain  # recurrent layers are captured without it
    finally:
        torch._C._set_mkldnn_enabled(before)
    halved = Forward(lambda net, x: x.new_ones(1, 2).long() / 2)
    half = capture(nn.Sequential(nn.Linear(2, 2)), torch.zeros(1, 2, dtype=torch.float32)).outputs[0].dtype
    torch.set_default_dtype(torch.float64)
    try:
        assert capture(halved, torch.zeros(1, 2)).outputs[0].dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert capture(halved, torch.zeros(1, 2)).outputs[0].dtype == half == torch.float32


def test_what_a_watcher_is_told_has_run():
    class Watch:
        def __init__(self) -> None:
            self.n_operators = 0

        def operator(self, func, args, out) -> None:
            self.n_operators += 1

        def result(self, tensors) -> None:
            pass

    net, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.zeros(1, 4)
    capture(net, x)
    watch = Watch()
    assert len(capture(net, x, watch=watch).ops) == watch.n_operators


def test_a_remembered_call_gives_new_tensors():
    seen = []

    def code(net, x):
        seen.append(net.linear(x))
        return seen[-1]

    net, x = Forward(code), torch.zeros(1, 8)
    capture(net, x)
    capture(net, x)
    assert seen[0] is not seen[1]
    assert all(type(t) is Twin for t in seen)


def test_attention_is_one_operator_wherever_it_is_called():
    trace = capture(Forward(_attention_in_autocast), torch.zeros(2, 2, 4, 8))
    assert sum(op.target is ATTENTION for op in trace.ops) == 2
