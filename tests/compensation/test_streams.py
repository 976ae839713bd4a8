"""Streams: the shift of a summand moves the sum by what the rest has drifted, wherever the way there is a scaling."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from secateur.capture import capture
from secateur.compensation.readers import find_readers, find_users
from secateur.compensation.streams import Stream, find_stream
from secateur.program import Program

WIDTH = 6


class Sum(nn.Module):
    """x + way(reader(x)), on images or rows."""

    def __init__(self, reader: nn.Module, way: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.reader, self.way = reader, way
        self.norm = nn.BatchNorm2d(WIDTH)
        self.scale = nn.Parameter(torch.rand(WIDTH) + 0.5)
        with torch.no_grad():
            for t in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
                t.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.way(self, x, self.reader(x))


def add_in_place(m: Sum, x: Tensor, y: Tensor) -> Tensor:
    y += x * 2
    return y


CONVOLUTION, LINEAR = "convolution", "linear"
STREAMS = {
    "plain": (LINEAR, lambda m, x, y: x + y),
    "the other way round": (LINEAR, lambda m, x, y: y + x),
    "in place": (LINEAR, add_in_place),
    "layer scale": (LINEAR, lambda m, x, y: x + y * m.scale),
    "views": (LINEAR, lambda m, x, y: x.T[None] + y.view(-1, WIDTH).permute(1, 0).unsqueeze(0)),
    "batch norm": (CONVOLUTION, lambda m, x, y: x + m.norm(y)),
    "batch norm and layer scale": (CONVOLUTION, lambda m, x, y: m.norm(y) * m.scale[:, None, None] + x),
}
NONE = {
    "scaled by an activation": (LINEAR, lambda m, x, y: x + y * x.sigmoid()),
    "scaled by an input": (LINEAR, lambda m, x, y: x + y * x),
    "bent": (LINEAR, lambda m, x, y: x + y.relu()),
    "read twice": (LINEAR, lambda m, x, y: x + y * y),
    "no sum": (LINEAR, lambda m, x, y: y),
    "a scaled sum": (LINEAR, lambda m, x, y: torch.add(x, y, alpha=2)),
    "a sum with itself": (LINEAR, lambda m, x, y: y + y),
    "a sum with one number": (LINEAR, lambda m, x, y: y + 1),
    "broadcast": (LINEAR, lambda m, x, y: y + m.scale),
}


def stream_of(kind: str, way: Callable[..., Tensor]) -> tuple[Program, Stream | None, Tensor, int]:
    torch.manual_seed(0)
    is_image = kind == CONVOLUTION
    reader = nn.Conv2d(WIDTH, WIDTH, 3, padding=1) if is_image else nn.Linear(WIDTH, WIDTH)
    x = torch.randn((2, WIDTH, 4, 4) if is_image else (5, WIDTH), dtype=torch.float64)
    model = Sum(reader, way).double().eval()
    program = Program(model, capture(model, x, is_fake=False))
    (found,), _ = find_readers(program.trace)
    return program, find_stream(found, find_users(program.trace), program.derived), x, found.op


@pytest.mark.parametrize("name", STREAMS)
def test_a_shift_moves_the_sum_by_the_gap(name: str):
    program, stream, x, op = stream_of(*STREAMS[name])
    assert stream is not None
    run = program.start(x)
    run.advance(op + 1)
    expected = run.fork().finish()[0]
    gap = torch.randn(stream.other.shape, dtype=torch.float64)
    moved = run.fork()
    moved.values[stream.y.index] += stream.shift(run, run[stream.y], gap)
    torch.testing.assert_close(moved.finish()[0], expected + gap)


def test_a_channel_that_hardly_counts_is_not_shifted():
    program, stream, x, op = stream_of(*STREAMS["layer scale"])
    with torch.no_grad():
        program.model.scale[2] = 1e-9
    run = program.start(x)
    run.advance(op + 1)
    assert stream is not None
    shift = stream.shift(run, run[stream.y], torch.ones(stream.other.shape, dtype=torch.float64))
    assert bool((shift[:, 2] == 0).all())
    torch.testing.assert_close(shift[:, 3], (1 / program.model.scale[3]).detach().expand(5))


@pytest.mark.parametrize("name", NONE)
def test_what_is_no_sum_of_scaled_elements_is_no_stream(name: str):
    assert stream_of(*NONE[name])[1] is None
