"""Segments: parts of a network between cuts, where one tensor alone carries everything on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from secateur.compensation.readers import Reader
from secateur.program import Program
from secateur.record import Op, Value

_EMBEDDING = torch.ops.aten.embedding.default
_SMALLEST = 2
"""Readers in a segment: one alone has its best weights in closed form already."""


@dataclass(frozen=True)
class Segment:
    """The operators from `start` up to `stop`, whose only result that later ones need is `out`.

    Attributes:
        readers: those inside.
        parameters: what may be fitted: the floating-point parameters that nothing outside reads, without embeddings.
    """

    start: int
    stop: int
    out: Value
    readers: tuple[Reader, ...]
    parameters: tuple[Value, ...]


def find_segments(program: Program, readers: list[Reader]) -> list[Segment]:
    """Segments in order, each with at least two readers, or the last one, and as short as its cuts allow.

    What lies behind the last cut, such as two heads, is in none.
    """
    cuts = _cuts(program, readers)
    found: list[Segment] = []
    inside: list[Reader] = []
    for reader, following in zip(readers, [*readers[1:], None], strict=True):
        inside.append(reader)
        end = len(program.trace.ops) if following is None else following.op
        cut = next((i for i in range(end, reader.op, -1) if i in cuts), None)
        if cut is not None and (len(inside) >= _SMALLEST or following is None):
            start = found[-1].stop if found else 0
            found.append(_segment(program, start, cut, cuts[cut], inside))
            inside = []
    return found


def whole(program: Program, readers: list[Reader]) -> Segment:
    """The network up to its first output."""
    return _segment(program, 0, len(program.trace.ops), program.trace.outputs[0], readers)


def _segment(program: Program, start: int, stop: int, out: Value, readers: list[Reader]) -> Segment:
    ops = program.trace.ops
    inside = _parameters(program, ops[start:stop])
    outside = _parameters(program, (*ops[:start], *ops[stop:]))
    tables = _parameters(program, [op for op in ops if op.target is _EMBEDDING])  # calibration data hold few rows
    free = tuple(v for i, v in inside.items() if i not in outside | tables and v.dtype.is_floating_point)
    return Segment(start, stop, out, tuple(readers), free)


def _parameters(program: Program, ops: Iterable[Op]) -> dict[int, Value]:
    """What operators read, be it through what is derived from it where they run, by index."""
    found: dict[int, Value] = {}
    for op in ops:
        read = [] if program.is_derived(op) else op.values
        while read:
            derived = [program.derived[v.index] for v in read if v.index in program.derived]
            found.update({v.index: v for v in read if v.source == "parameter"})
            read = [v for maker in derived for v in maker.values]
    return found


def _cuts(program: Program, readers: list[Reader]) -> dict[int, Value]:
    """By the index of the next operator: the one live tensor that depends on what the readers give."""
    ops = program.trace.ops
    tainted = {r.y.index for r in readers}
    live: dict[int, Value] = {}
    cuts: dict[int, Value] = {}
    for op in ops:
        made = [v for v in op.outputs if v is not None]
        if any(v.index in tainted for v in op.values):
            tainted.update(v.index for v in made)
        live.update({v.index: v for v in made if v.index in tainted})
        for index in program.dying.get(op.index, ()):
            live.pop(index, None)
        if len(live) == 1:
            cuts[op.index + 1] = next(iter(live.values()))
    return cuts
