"""The record of a forward: which operators ran, on which values, from which line of which module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from secateur.errors import CaptureError

T = TypeVar("T")
NESTS = (list, tuple)  # a pair: isinstance is faster on it than on a union that is made at each call
PLAIN = {int, float, bool, type(None), str, torch.dtype, torch.device, torch.layout, torch.memory_format}

_COPIES = {getattr(torch.ops.aten, name).default for name in ("clone", "alias", "detach", "lift_fresh", "_to_copy")}
_VIEWS = {getattr(torch.ops.aten, name).default: "view" for name in ("view", "_unsafe_view", "_reshape_alias")}
_EMPTY = {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
_EMPTY |= {"aten::empty.memory_format"}
_NEW = torch.ops.aten.empty.memory_format
_RESTRIDE = torch.ops.aten.as_strided_.default


@dataclass(eq=False, slots=True)  # not frozen, which makes each one take three times as long to write
class Value:
    """A tensor that the forward read or made. `key` names a parameter, buffer, attribute or input; else it is empty."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str  # "parameter" | "buffer" | "attribute" | "input" | "constant" | "op"
    key: str = ""
    number: float | None = None  # of a constant with one element: code may have computed it from a width

    def __repr__(self) -> str:
        return f"%{self.index}{list(self.shape)}"


@dataclass(eq=False, slots=True)
class Op:
    """One operator call: `args` and `kwargs` as ATen got them, with a `Value` in place of each tensor."""

    index: int
    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    fqn: str  # innermost module whose forward was running
    location: str  # "file.py:12", the innermost line outside torch
    chooses_all: bool = False  # it depends on learned values: see `secateur.choices`

    @property
    def values(self) -> list[Value]:
        """The values among the arguments, in order, as often as they occur."""
        return found_in((*self.args, *self.kwargs.values()) if self.kwargs else self.args, Value)

    @property
    def where(self) -> str:
        """The operator and where the user's code called it, for messages."""
        return f"{self.target} in '{self.fqn or 'the model'}' ({self.location})"


def found_in(args: Iterable[Any], kind: type[T]) -> list[T]:
    """What is of a type, none of `PLAIN`, among arguments, which nest in lists, tuples and dicts alone."""
    found: list[T] = []
    for a in args:
        if type(a) in PLAIN:
            continue
        if isinstance(a, kind):
            found.append(a)
        elif isinstance(a, NESTS):
            found += found_in(a, kind)
        elif isinstance(a, dict):
            found += found_in(a.values(), kind)
    return found


def settle(func: Any, out: Any) -> Any:
    """Fill what an operator left uninitialised, so that two runs agree on it."""
    if isinstance(out, Tensor) and func.name() in _EMPTY:
        out.zero_()
    return out


def parts(out: Any) -> Sequence[Any]:
    """What an operator gave, one result or several, as several."""
    return out if isinstance(out, NESTS) else (out,)


def is_constant_copy(target: Any) -> bool:
    """True for an operator that passes every tensor on, whatever its shape."""
    return target in _COPIES


def is_copy(target: Any, shape_in: tuple[int, ...] | None, shape_out: tuple[int, ...] | None) -> bool:
    """True for an operator that only passes a tensor on. Torch adds and drops these by layout, size and fakeness."""
    return target in _COPIES or (target is torch.ops.aten.expand.default and shape_in == shape_out)


def is_same(a: Any, b: Any) -> bool:
    """True for operators that stand for each other: torch decides by layout which view a reshape is."""
    return _VIEWS.get(a, a) is _VIEWS.get(b, b)


def is_aside(func: Any, args: Any) -> bool:
    """True for a call that torch makes for itself and that says nothing of the network; it stays off the record.

    Either it makes a tensor without elements, as batch norms do for what kernels elsewhere reserve; or it gives a
    tensor the axes that it has, with other strides on axes of size 1: pooling marks its result as channels-last so, or
    doesn't, by a layout that a smaller network may not have.
    """
    if func is _NEW:
        return 0 in args[0]
    if func is not _RESTRIDE or len(args) > 3:
        return False
    x, size, strides = args
    axes = zip(x.shape, size, x.stride(), strides, strict=False)
    return len(size) == x.dim() and all(n == m and (n == 1 or a == b) for n, m, a, b in axes)


@dataclass(frozen=True, eq=False)
class Trace:
    """What one forward did. `tensors` holds the model's own parameters, buffers and tensor attributes by key.

    `ended_by` names the operator that reads a learned value for the code to go on by, where there is one: the record
    ends before it, and `outputs` are what the code may still read (see `secateur.choices`).
    `constants` holds tensors that the forward found elsewhere, by the index of their value; real captures alone do so.
    """

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    tensors: dict[str, Value]
    tied: dict[str, str] = field(default_factory=dict)  # every further key of a tensor -> its first key
    ended_by: str = ""
    constants: dict[int, Tensor] = field(default_factory=dict)

    @cached_property
    def readers(self) -> dict[int, Op]:
        """The first operator that read a value, by the value's index."""
        return {v.index: op for op in reversed(self.ops) for v in op.values}

    def read_at(self, value: Value) -> str:
        """Where a value was first read, as the end of a reason; nothing where it wasn't."""
        op = self.readers.get(value.index)
        return f": {op.where}" if op is not None else ""

    def made_at(self, value: Value) -> str:
        """Where a value was made, as the end of a reason; nothing where no operator made it."""
        op = next((op for op in reversed(self.ops) if value in op.outputs), None)
        return f": {op.where}" if op is not None else ""

    @cached_property
    def unread(self) -> tuple[str, ...]:
        """Keys of the parameters that no operator read, such as those of a head used only in training."""
        return tuple(k for k, v in self.tensors.items() if v.index not in self.readers and v.source == "parameter")

    @property
    def why_unread(self) -> str:
        """The reason to keep what no operator read."""
        if self.ended_by:
            return f"not reached: the code goes on by a learned value, {self.ended_by}"
        return "not used by this forward, which runs in eval mode"

    @property
    def dangling(self) -> tuple[Value, ...]:
        """What no operator had read yet when the record ended early: code may hold it without a name."""
        made = [v for op in self.ops for v in op.outputs if v is not None]
        return tuple(v for v in made if v.index not in self.readers) if self.ended_by else ()

    @cached_property
    def essential(self) -> tuple[Op, ...]:
        """The operators without those that only pass a tensor on: what two records are compared by."""
        return tuple(
            op
            for op in self.ops
            if not is_copy(op.target, getattr(op.args[0] if op.args else None, "shape", None), _shape(op.outputs))
        )

    def __str__(self) -> str:
        return "\n".join(f"{', '.join(map(str, op.outputs))} = {op.target}{op.args}  # {op.fqn}" for op in self.ops)


@dataclass(frozen=True)
class Attempt:
    """The operator that was running when a forward failed, for the repair loop."""

    index: int
    fqn: str
    location: str
    error: Exception


class ForwardFailed(CaptureError):
    """The forward raised. Carries what was recorded until then, so that a repair can look at it."""

    def __init__(self, message: str, trace: Trace, attempt: Attempt) -> None:
        super().__init__(message)
        self.trace = trace
        self.attempt = attempt


def _shape(outputs: tuple[Value | None, ...]) -> tuple[int, ...] | None:
    return outputs[0].shape if outputs and outputs[0] is not None else None
