"""Templates: the operators that a call has recorded, with slots in place of values, to be written down for others.

Slots are numbered: first the tensors that the call was given, then what its operators make.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from secateur import choices
from secateur.record import NESTS, PLAIN, Op, Value, parts
from secateur.twins import Form, Twin


class Record(Protocol):
    """A record that is being written."""

    ops: list[Op]
    values: MutableMapping[Tensor, Value]
    n_values: int


class _New(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype


class _List(NamedTuple):
    place: int
    kind: type
    slots: tuple[int, ...]  # -1 for None


@dataclass(frozen=True, eq=False, slots=True)
class _Step:
    """An operator: `args` hold None where a value is filled in; `outputs` hold a slot where it was there before."""

    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    fills: tuple[tuple[int, int], ...]  # (place among the arguments, slot)
    lists: tuple[_List, ...]
    kwargs: dict[str, Any]
    outputs: tuple[_New | int | None, ...]
    location: str  # empty for the call's own

    def filled(self, slots: list[Value]) -> tuple[Any, ...]:
        """The arguments, with values in them."""
        args = list(self.args)
        for place, slot in self.fills:
            args[place] = slots[slot]
        for place, kind, inner in self.lists:
            args[place] = kind([None if slot < 0 else slots[slot] for slot in inner])
        return tuple(args)


@dataclass(frozen=True, eq=False, slots=True)
class Template:
    """What a call records and gives. `kind` is that of several results, None for one."""

    steps: tuple[_Step, ...]
    results: tuple[tuple[int, Form | None], ...]  # slot, and the form of what is new
    kind: type | None

    def write(self, record: Record, values: list[Value], tensors: Sequence[Tensor], fqn: str, location: str) -> Any:
        """Record the operators on other values, those of `tensors`, and return twins of what the call gave."""
        ops, slots = record.ops, values.copy()
        for step in self.steps:
            args = step.filled(slots)
            outputs: list[Value | None] = []
            for known in step.outputs:
                if known is None or type(known) is int:
                    outputs.append(None if known is None else slots[known])
                else:
                    made = Value(record.n_values, known[0], known[1], "op")  # type: ignore[index]
                    record.n_values += 1
                    slots.append(made)
                    outputs.append(made)
            where = step.location or location
            ops.append(Op(len(ops), step.target, args, step.kwargs.copy(), tuple(outputs), fqn, where))
        given: list[Tensor] = []
        for slot, form in self.results:
            if form is None:
                given.append(tensors[slot])
            else:
                given.append(mine := Twin.of(form))
                record.values[mine] = slots[slot]
        return given[0] if self.kind is None else self.kind(given)


def learn(
    ops: Sequence[Op],
    out: Any,
    values: Sequence[Value],
    tensors: Sequence[Tensor],
    known: Mapping[Tensor, Value],
    has_own_lines: bool,
) -> Template | None:
    """The template of a call that has run; None where it is more than operators on its tensors.

    Args:
        ops: what it recorded, and `out` what it gave.
        values: of the `tensors` that it was given.
        known: the values of all tensors of the capture.
        has_own_lines: its operators are named by lines within torch, and not by the one that called it.
    """
    slots = {id(v): i for i, v in enumerate(values)}
    steps = []
    for op in ops:
        step = _step(op, slots, op.location if has_own_lines else "")
        if step is None:
            return None
        steps.append(step)
    results: list[tuple[int, Form | None]] = []
    for t in parts(out):
        slot = slots.get(id(known.get(t))) if type(t) is Twin else None
        if slot is None or (slot < len(values) and t is not tensors[slot]):
            return None
        if slot >= len(values) and t.requires_grad:  # a view of a parameter: torch may go on by that
            return None
        results.append((slot, None if slot < len(values) else t.form))
    kind = type(out) if isinstance(out, NESTS) else None
    if kind not in (None, list, tuple) or len(set(results)) < len(results):
        return None
    return Template(tuple(steps), tuple(results), kind)


def _step(op: Op, slots: dict[int, int], location: str) -> _Step | None:
    """An operator with slots in place of values; what it makes gets the next ones."""
    if op.chooses_all or torch.Tag.inplace_view in op.target.tags or choices.may_decide(op.target):
        return None
    if not all(map(_is_plain, op.kwargs.values())):
        return None
    args, fills, lists = list(op.args), [], []
    for place, a in enumerate(op.args):
        if isinstance(a, Value) and id(a) in slots:
            fills.append((place, slots[id(a)]))
        elif isinstance(a, NESTS) and any(id(item) in slots for item in a):
            inner = [-1 if item is None else slots.get(id(item), -2) for item in a]
            if -2 in inner:
                return None
            lists.append(_List(place, type(a), tuple(inner)))
        elif _is_plain(a):
            continue
        else:
            return None
        args[place] = None
    outputs: list[_New | int | None] = []
    for v in op.outputs:
        if v is None or id(v) in slots:
            outputs.append(None if v is None else slots[id(v)])
        elif v.source != "op" or v.number is not None:
            return None
        else:
            slots[id(v)] = len(slots)
            outputs.append(_New(v.shape, v.dtype))
    return _Step(op.target, tuple(args), tuple(fills), tuple(lists), op.kwargs, tuple(outputs), location)


def _is_plain(a: Any) -> bool:
    """True for what says the same in every call."""
    return type(a) in PLAIN or (isinstance(a, NESTS) and all(map(_is_plain, a)))
