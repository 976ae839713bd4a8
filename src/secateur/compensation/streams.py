"""Streams: where what a reader gives is added to something that is there already, and may have drifted."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.compensation.readers import Reader, Users
from secateur.folding import BATCH_NORMS
from secateur.program import Run
from secateur.record import Op, Value, is_constant_copy

aten = torch.ops.aten
_ADDS = {aten.add.Tensor, aten.add_.Tensor}
_MOVES = {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        *((n, "default") for n in ("view", "_unsafe_view", "permute", "t", "unsqueeze", "squeeze", "roll")),
        *(("squeeze", n) for n in ("dim", "dims")),
        ("transpose", "int"),
    )
}
_CHAIN = _MOVES | BATCH_NORMS | {aten.mul.Tensor}
_FLATTEST = 1e-3
"""A channel scaled by less than this fraction of the mean scale can't make up for anything."""


@dataclass(frozen=True)
class Stream:
    """A sum that a reader's output goes into through operators that move or scale each element.

    Attributes:
        y: what the reader gives.
        other: the other summand.
        chain: the operators between y and the sum.
    """

    y: Value
    other: Value
    chain: tuple[Op, ...]

    def shift(self, run: Run, y: Tensor, gap: Tensor) -> Tensor:
        """The shift of y that moves the sum by `gap`.

        With chain(y) = a * move(y) + b, elementwise: (chain'^T gap) / (chain'^T 1)^2, both of the shape of y.
        """
        with torch.enable_grad():
            x = y.detach().requires_grad_()
            out = self._follow(run, x)
            ones = torch.ones_like(out)
            slope, pulled = (torch.autograd.grad(out, x, g, retain_graph=True)[0] for g in (ones, gap.expand_as(out)))
        able = slope.abs() > _FLATTEST * slope.abs().mean()
        return torch.where(able, pulled / torch.where(able, slope, 1).square(), 0)

    def _follow(self, run: Run, x: Tensor) -> Tensor:
        value = self.y
        for op in self.chain:
            args = [x if a is value else run[a] if isinstance(a, Value) else a for a in op.args]
            out = op.target(*args, **op.kwargs)
            x = out[0] if isinstance(out, tuple) else out
            assert op.outputs[0] is not None
            value = op.outputs[0]
        return x


def find_stream(reader: Reader, users: Users, derived: Container[int] = ()) -> Stream | None:
    """The sum that a reader's output alone goes into, if there is one.

    Args:
        derived: indices of values that operators make of weights alone, by which an output may be scaled.
    """
    value = reader.y
    chain: list[Op] = []
    while len(after := users.get(value.index, [])) == 1:
        op = after[0]
        if op.target in _ADDS:
            summands = [a for a in op.args[:2] if isinstance(a, Value)]
            others = [a for a in summands if a is not value and a.shape == value.shape]
            return Stream(reader.y, others[0], tuple(chain)) if len(others) == 1 and not op.kwargs else None
        if op.args[0] is not value or not (op.target in _CHAIN or is_constant_copy(op.target)):
            return None
        factors = [a for a in op.args[1:] if isinstance(a, Value) and a.index not in derived]
        if any(a.source in ("op", "input") for a in factors) or op.outputs[0] is None:
            return None  # scaled by an activation
        chain.append(op)
        value = op.outputs[0]
    return None
