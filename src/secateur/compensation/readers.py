"""Readers: the operators that multiply an activation by a weight and sum, so that the weight can be solved for again.

y[n, g, o] = shift[g, o] + sum_k weight[g, o, k] * phi(x)[n, g, k]

phi lists what one output position sees of the input: the features of a row for a matrix product, the window for a
convolution. n runs over all positions of all samples, g over the groups of a grouped convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from secateur.dims.groups import Group
from secateur.folding import BATCH_NORMS
from secateur.record import Op, Trace, Value

aten = torch.ops.aten
_PRODUCTS = {aten.addmm.default, aten.mm.default, aten.linear.default}
_TRANSPOSES: dict[Any, Callable[..., bool]] = {
    aten.t.default: lambda: True,
    aten.transpose.int: lambda a, b: (a - b) % 2 == 1,
    aten.permute.default: lambda dims: [d % 2 for d in dims] == [1, 0],
}
"""Operators that transpose a matrix, where this holds for their arguments behind the matrix."""

Users = Mapping[int, list[Op]]
"""By value: the operators that take it."""


@dataclass(frozen=True)
class Thin:
    """Every `step`-th position of each spatial axis, from `offset` on: neighbours tell nearly the same."""

    step: int = 1
    offset: int = 0

    def along(self, t: Tensor, axis: int) -> Tensor:
        """The positions that are left, as a view."""
        return t if self.step == 1 else t[(slice(None),) * axis + (slice(self.offset, None, self.step),)]


EVERY = Thin()


@dataclass(frozen=True)
class Window:
    """What an output position of a convolution sees."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def unfold(self, x: Tensor, thin: Thin) -> Tensor:
        """(batch, channels, *space) -> (batch * positions, groups, channels / groups * window)."""
        pads = [n for p in reversed(self.padding) for n in (p, p)]
        seen = functional.pad(x, pads) if any(pads) else x
        for i, (k, s, d) in enumerate(zip(self.kernel, self.stride, self.dilation, strict=True)):
            seen = thin.along(seen.unfold(2 + i, d * (k - 1) + 1, s)[..., ::d], 2 + i)
        seen = seen.movedim(1, 1 + len(self.kernel))  # (batch, *positions, channels, *window)
        return seen.reshape(-1, self.groups, x.shape[1] // self.groups * math.prod(self.kernel))


@dataclass(frozen=True)
class Reader:
    """An operator that reads an activation through a weight.

    Attributes:
        op: its index in the record.
        x, y: the activation that it reads, and what it gives.
        weight: key of the parameter; `is_transposed` where its axes are (k, o) rather than (o, k).
        shift: key of the tensor that shifts y: its bias, or the running mean of a batch norm that follows.
        is_mean: True where `shift` is such a mean, which is subtracted.
        window: the settings of a convolution; None for a matrix product.
    """

    op: int
    x: Value
    y: Value
    weight: str
    is_transposed: bool = False
    shift: str | None = None
    is_mean: bool = False
    window: Window | None = None

    def inputs(self, x: Tensor, thin: Thin = EVERY) -> Tensor:
        """phi(x), (n, groups, k), in the dtype of x; n counts the positions that `thin` leaves."""
        if self.window is None:
            return thin.along(x, 0).reshape(-1, 1, x.shape[-1])
        return self.window.unfold(x, thin)

    def outputs(self, y: Tensor, thin: Thin = EVERY) -> Tensor:
        """(n, groups, o), for y and for whatever has its shape."""
        if self.window is None:
            return thin.along(y, 0).reshape(-1, 1, y.shape[-1])
        for axis in range(2, y.dim()):
            y = thin.along(y, axis)
        return y.movedim(1, -1).reshape(-1, self.window.groups, y.shape[1] // self.window.groups)

    def thin(self, i: int, n_batches: int, max_rows: int) -> Thin:
        """What leaves about `max_rows` positions over all batches; batch i starts from an offset of its own."""
        space = self.y.shape[2:] if self.window is not None else self.y.shape[:1]
        wanted = (self.n_rows * n_batches / max_rows) ** (1 / max(1, len(space)))
        step = max(1, min(*space, int(wanted), self.n_rows)) if space else 1
        return Thin(step, i % step)

    @property
    def n_rows(self) -> int:
        """Positions of one batch."""
        return math.prod(self.y.shape) // self.y.shape[1 if self.window is not None else -1]

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as (groups, o, k), float64, detached."""
        weight = weight.detach().double()
        if self.window is None:
            return (weight.T if self.is_transposed else weight).unsqueeze(0)
        return weight.reshape(self.window.groups, weight.shape[0] // self.window.groups, -1)

    def weight_of(self, matrix: Tensor, like: Tensor) -> Tensor:
        """Undo `matrix`: the weight in the shape and dtype of another."""
        if self.window is None and self.is_transposed:
            matrix = matrix.mT
        return matrix.reshape(like.shape).to(like.dtype)

    def columns(self, group: Group, shape: tuple[int, ...]) -> Tensor | None:
        """Where phi holds the units of a group: (size, b) int64; None where it holds none. `shape` is the weight's."""
        axis = 0 if self.window is None and self.is_transposed else 1
        places = torch.arange(shape[axis])
        members = [m for m in group.members if m.key == self.weight and m.axis == axis]
        if not members:
            return None
        units = torch.cat([m._replace(axis=0).view(places).reshape(group.size, -1) for m in members], 1)
        if self.window is None:
            return units
        width = math.prod(self.window.kernel)
        return (units[:, :, None] * width + torch.arange(width)).flatten(1)


def find_users(trace: Trace) -> Users:
    """By value: the operators that take it, each once."""
    users: dict[int, list[Op]] = {}
    for op in trace.ops:
        for index in dict.fromkeys(v.index for v in op.values):
            users.setdefault(index, []).append(op)
    return users


def find_readers(trace: Trace) -> tuple[list[Reader], list[tuple[str, str]]]:
    """Readers in order of execution, and the weights that can't be solved for, as (key, reason)."""
    makers = {v.index: op for op in trace.ops for v in op.outputs if v is not None}
    users = find_users(trace)
    found: list[Reader] = []
    skipped: dict[str, str] = {}
    for op in trace.ops:
        if op.target is aten.convolution.default:
            reader, weight, reason = _convolution(op, users)
        elif op.target in _PRODUCTS:
            reader, weight, reason = _product(op, makers, users)
        else:
            continue
        if weight.source != "parameter":
            continue  # two activations, or a weight that other tensors make
        if reader.y.index not in users and reader.y not in trace.outputs:
            reason = "nothing reads what it gives"
        elif not reason and (n := _times_read(weight, users)) > 1:
            reason = f"read {n} times, so that no single solution fits"
        if reason:
            skipped[weight.key] = reason
        else:
            found.append(reader)
    return found, list(skipped.items())


def _convolution(op: Op, users: Users) -> tuple[Reader, Value, str]:
    x, weight, bias, stride, padding, dilation, transposed, _, groups = op.args
    window = Window(tuple(weight.shape[2:]), tuple(stride), tuple(padding), tuple(dilation), groups)
    y = op.outputs[0]
    assert y is not None
    reader, reason = _shifted(Reader(op.index, x, y, weight.key, window=window), bias, users)
    return reader, weight, "transposed convolution" if transposed else reason


def _product(op: Op, makers: Mapping[int, Op], users: Users) -> tuple[Reader, Value, str]:
    if op.target is aten.addmm.default:
        bias, x, weight = op.args
    else:
        x, weight, bias = (*op.args, None)[:3]
    is_transposed = op.target is not aten.linear.default
    if (maker := makers.get(weight.index)) is not None and _is_transpose(maker):
        weight, is_transposed = maker.args[0], not is_transposed
    y = op.outputs[0]
    assert y is not None
    reader, reason = _shifted(Reader(op.index, x, y, weight.key, is_transposed), bias, users)
    return reader, weight, "a scaled product" if op.kwargs else reason


def _shifted(reader: Reader, bias: Value | None, users: Users) -> tuple[Reader, str]:
    """The reader with what may shift its output, where that shifts nothing else, and why it can't be solved for."""
    if bias is not None:
        is_own = bias.source == "parameter" and len(bias.shape) == 1 and len(users[bias.index]) == 1
        return (replace(reader, shift=bias.key), "") if is_own else (reader, "its bias is no parameter of its own")
    after = users.get(reader.y.index, [])
    if len(after) == 1 and after[0].target in BATCH_NORMS:
        mean = after[0].args[3]
        if isinstance(mean, Value) and mean.source == "buffer" and len(users[mean.index]) == 1:
            return replace(reader, shift=mean.key, is_mean=True), ""
    return reader, ""


def _is_transpose(op: Op) -> bool:
    return op.target in _TRANSPOSES and _TRANSPOSES[op.target](*op.args[1:])


def _times_read(weight: Value, users: Users) -> int:
    """How many operators read a parameter, be it through a transposed view."""
    return sum(
        _times_read(op.outputs[0], users) if _is_transpose(op) and op.outputs[0] is not None else 1
        for op in users.get(weight.index, [])
    )
