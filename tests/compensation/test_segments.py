"""Segments: between cuts one tensor alone carries everything on."""

from __future__ import annotations

import torch
from hypothesis import given
from tests.laws import networks
from tests.laws.settings import some
from torch import Tensor, nn

from secateur.capture import capture
from secateur.compensation.readers import find_readers
from secateur.compensation.segments import Segment, find_segments
from secateur.program import Program


def segments_of(model: nn.Module, x: Tensor) -> list[Segment]:
    program = Program(model.eval(), capture(model, x, is_fake=False))
    return find_segments(program, find_readers(program.trace)[0])


def names(segments: list[Segment]) -> list[list[str]]:
    return [[r.weight.removesuffix(".weight") for r in s.readers] for s in segments]


@some(25)
@given(networks.programs())
def test_nothing_but_its_result_leaves_a_segment_and_nothing_else_reads_its_parameters(network: networks.Program):
    """Changing what a segment's parameters are changes its result and what follows from it alone."""
    model, inputs = networks.build(network)
    program = Program(model, capture(model, inputs, is_fake=False))
    readers, _ = find_readers(program.trace)
    segments = find_segments(program, readers)
    inside = [r for s in segments for r in s.readers]
    assert inside == readers[: len(inside)]
    assert [s.start for s in segments] == [0, *(s.stop for s in segments)][: len(segments)]
    with torch.no_grad():
        for segment in segments:
            expected = program.start(inputs)
            expected.advance(segment.stop)
            result = expected[segment.out]
            run = program.start(inputs)
            run.advance(segment.start)
            changed = run.fork({v.index: program.fixed[v.index] * 1.5 + 0.1 for v in segment.parameters})
            changed.advance(segment.stop)
            changed.instead = {}
            changed.values[segment.out.index] = result.clone()
            for a, b in zip(changed.finish(), program.start(inputs).finish(), strict=True):
                torch.testing.assert_close(a, b)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.two(self.one(x).relu())).relu()


def test_a_residual_network_is_cut_behind_its_blocks():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Block(), Block(), nn.Flatten(), nn.LazyLinear(3))
    model(torch.zeros(1, 3, 6, 6))
    found = segments_of(model, torch.zeros(1, 3, 6, 6))
    assert names(found) == [["0", "1.one", "1.two"], ["2.one", "2.two"], ["4"]]
    keys = [{v.key for v in s.parameters} for s in found]
    assert keys[1:] == [{f"2.{n}.{k}" for n in ("one", "two") for k in ("weight", "bias")}, {"4.weight", "4.bias"}]


def test_a_plain_chain_is_cut_into_pairs():
    model = nn.Sequential(*(m for _ in range(5) for m in (nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU())))
    found = segments_of(model, torch.zeros(1, 3, 6, 6))
    assert names(found) == [["0", "3"], ["6", "9"], ["12"]]
    assert "1.weight" in {v.key for v in found[0].parameters}  # a batch norm's scale is fitted, its statistics are not
    assert not any("running" in v.key for s in found for v in s.parameters)


def test_a_transformer_block_is_cut_between_attention_and_mlp():
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    found = segments_of(block, torch.zeros(2, 5, 8))
    assert names(found) == [["self_attn.in_proj_weight", "self_attn.out_proj"], ["linear1", "linear2"]]
    assert all({r.weight for r in s.readers} <= {v.key for v in s.parameters} for s in found)


class UNet(nn.Module):
    """A skip connection around everything but the first and the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(w, 4, 3, padding=1) for w in (3, 4, 4, 8))
        self.e = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = self.c(self.b(nn.functional.avg_pool2d(x, 2)).relu())
        return self.e(self.d(torch.cat([x, nn.functional.interpolate(y, scale_factor=2.0)], 1)).relu())


def test_a_skip_connection_is_not_cut_through():
    assert names(segments_of(UNet(), torch.zeros(1, 3, 8, 8))) == [["a", "b", "c"], ["d", "e"]]


class Shared(nn.Module):
    """One scale and one bias in both segments, two heads behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.heads = nn.ModuleList(nn.Linear(4, 2) for _ in range(2))
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        for a, b in (self.layers[:2], self.layers[2:]):
            x = (b(a(x).relu()) * self.scale).relu()
        return self.heads[0](x), self.heads[1](x)


def test_what_two_segments_read_is_fitted_in_none_and_heads_are_in_none():
    found = segments_of(Shared(), torch.zeros(2, 4))
    assert names(found) == [["layers.0", "layers.1"], ["layers.2", "layers.3"]]
    assert not any(v.key == "scale" for s in found for v in s.parameters)
    assert all(len(s.parameters) == 4 for s in found)
