"""Which activations live at the same time, from the record alone.

An activation is what the forward reads or makes: an input of the model, or the output of an operator. Parameters and
buffers are none. It lives from the operator that makes it to the last one that reads it or a view of it; a view
takes nothing, an operator that writes in place makes nothing, inputs and outputs live to the end, because the caller
holds them. This is what a forward without gradients needs at least: work space inside an operator comes on top, and so
do tensors that the code of the model still names after their last use.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.utils import _pytree as pytree

from secateur.record import Op, Trace, Value

_UNMARKED_VIEWS = {torch.ops.aten._unsafe_view.default}
"""Operators that give a view although their schema does not say so."""


@dataclass(frozen=True)
class Life:
    """A piece of memory, named by the value that it was made for, with the first and last operator that see it."""

    value: Value
    first: int  # index of an operator; -1 for inputs
    last: int  # index of an operator, or the number of operators where it outlives them all


def lives(trace: Trace) -> list[Life]:
    """The memory that each activation takes, and for how long; what nothing reads lives for its own operator.

    >>> from secateur.capture import capture
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.ReLU(), torch.nn.Unflatten(1, (2, 4)))
    >>> [(life.value.shape, life.first, life.last) for life in lives(capture(net, torch.zeros(1, 3)))]
    [((1, 3), -1, 4), ((1, 8), 1, 2), ((1, 8), 2, 4)]
    """
    n_ops = len(trace.ops)
    root: dict[int, Value] = {}  # index of a value -> the value whose memory it shows
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for value in trace.inputs:
        first[value.index], last[value.index] = -1, n_ops
    values = {value.index: value for value in trace.inputs}
    for op in trace.ops:
        for value in _reads(op):
            owner = root.get(value.index, value)
            last[owner.index] = max(op.index, last.get(owner.index, op.index))
        base = _viewed(op)
        for made in filter(None, op.outputs):
            if base is not None and made is not base:
                root[made.index] = root.get(base.index, base)
            elif made.source == "op" and made.index not in root and made.index not in first:
                values[made.index] = made
                first[made.index] = op.index
                last.setdefault(made.index, op.index)
    for value in trace.outputs:
        last[root.get(value.index, value).index] = n_ops
    return [Life(value, first[index], last[index]) for index, value in values.items()]


def _reads(op: Op) -> Iterator[Value]:
    return (v for v in pytree.tree_leaves((op.args, op.kwargs)) if isinstance(v, Value))


def is_view(op: Op) -> bool:
    """True for an operator that computes nothing: its output shows its input's memory and is not written to.

    >>> from secateur.capture import capture
    >>> [is_view(op) for op in capture(torch.nn.Linear(3, 8), torch.zeros(1, 3)).ops]  # t, addmm
    [True, False]
    """
    if op.target in _UNMARKED_VIEWS:
        return True
    marks = [r.alias_info for r in op.target._schema.returns if r.alias_info is not None]
    return bool(marks) and not any(mark.is_write for mark in marks)


def _viewed(op: Op) -> Value | None:
    """The argument that all outputs show parts of; None for an operator that makes something new."""
    schema = op.target._schema
    if not is_view(op) and not any(r.alias_info for r in schema.returns):
        return None
    marked = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None] or [0]
    return next((op.args[i] for i in marked if i < len(op.args) and isinstance(op.args[i], Value)), None)
