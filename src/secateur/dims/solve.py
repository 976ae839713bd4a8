"""From a trace to solved equations: run each operator's rule, and keep what the later steps need to know.

A rule sees one operator as a `Node` and its tensors as `Axes`. It states which axes are equal, what the output's axes
are, which axes are summed over, and how many multiply-adds that takes. Everything else follows from the algebra.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from secateur.dims.algebra import Cat, Dim, Leaf, Prod, find, freeze, linear_leaves, new
from secateur.dims.rule import Axes, Node, Position, Rule, Solution, rule_of
from secateur.errors import UnsupportedOpError
from secateur.record import NESTS, PLAIN, Op, Trace, Value

_MOVES = {
    getattr(getattr(torch.ops.aten, name), overload)
    for name, overload in (
        *((n, "default") for n in ("view", "_unsafe_view", "expand", "permute", "t", "unsqueeze", "squeeze", "clone")),
        *((n, "default") for n in ("alias", "detach", "_to_copy", "repeat", "split_with_sizes", "lift_fresh")),
        *(("squeeze", n) for n in ("dim", "dims")),
        *((n, "int") for n in ("transpose", "select", "unbind")),
        *((n, "Tensor") for n in ("slice", "split")),
        ("repeat_interleave", "self_int"),
    )
}
"""Operators that move elements and leave their values alone."""


def solve(trace: Trace, training: Trace | None = None) -> Solution:
    """Run every operator's rule over a trace.

    An operator without a rule, or used in a way that its rule does not cover, freezes the axes that it touches.
    Where a trace of the training forward is given too, its equations hold as well: what only training uses must fit.
    """
    solution = Solution(trace)
    for value in trace.tensors.values():
        _add_tensor(solution, value)
    for value in trace.inputs:
        why = f"model input {value.key}{trace.read_at(value)}"
        solution.dims[value.index] = tuple(new(n, why) for n in value.shape)
    _run(solution)
    unread = set(trace.unread)
    if training is not None:
        _run_training(solution, training)
        unread &= set(training.unread)
    for key in unread:
        for dim in solution.dims[trace.tensors[key].index]:
            freeze(dim, trace.why_unread)
    settle_ties(solution)
    return solution


def _run(solution: Solution) -> None:
    rule = functools.cache(rule_of)  # rules may be registered between two solutions
    for op in solution.trace.ops:
        _apply_rule(solution, op, rule(op.target))
    end = solution.trace.ended_by
    for value in (*solution.trace.outputs, *solution.trace.dangling):
        made = f"model output{solution.trace.made_at(value)}"
        why = f"read by code that goes on by a learned value: {end}" if end else made
        for dim in (*solution.dims[value.index], *filter(None, [solution.indexes.get(value.index)])):
            freeze(dim, why)


def _run_training(solution: Solution, training: Trace) -> None:
    """Add the equations of a training forward: the parameters and inputs are the same, the operators are not."""
    also = Solution(training, is_training=True, owners=solution.owners, roles=solution.roles)
    same = [(solution.trace.tensors[key], value) for key, value in training.tensors.items()]
    for mine, value in [*same, *zip(solution.trace.inputs, training.inputs, strict=True)]:
        also.dims[value.index] = solution.dims[mine.index]
        if mine.index in solution.weights:
            also.weights.add(value.index)
    _run(also)
    solution.ties += also.ties
    solution.minimum.update(also.minimum)


def _add_tensor(solution: Solution, value: Value) -> None:
    # booleans select and multiply; where their places are taken as numbers, `nonzero` and `index` say so themselves
    kind, reason = value.dtype, None
    if not (kind.is_floating_point or kind == torch.bool or kind.is_complex) and value.shape:
        reason = f"values of the {kind} buffer {value.key} index something{solution.trace.read_at(value)}"
    dims = []
    for axis, n in enumerate(value.shape):
        dims.append(dim := new(n, reason))
        if n != 1:
            solution.owners[id(dim)] = (value.key, axis)
    solution.dims[value.index] = tuple(dims)
    solution.weights.add(value.index)


def _apply_rule(solution: Solution, op: Op, rule: Rule | None) -> None:
    node = Node(solution, op)
    tensors: list[Axes] = []
    args = [a if type(a) in PLAIN else _wrap(node, tensors, a, i) for i, a in enumerate(op.args)]
    kwargs = op.kwargs and {k: a if type(a) in PLAIN else _wrap(node, tensors, a, k) for k, a in op.kwargs.items()}
    try:
        if rule is None:
            raise UnsupportedOpError("unknown operator")
        rule(node, *args, **kwargs)
    except UnsupportedOpError as error:
        for t in tensors:
            for dim in t.dims:
                node.freeze(dim, str(error))
        node.results = []
        solution.unknown.append(op)
    _set_outputs(node, tensors)
    if solution.indexes:
        _follow_indices(node, tensors)


def _wrap(node: Node, tensors: list[Axes], arg: Any, position: Position = -1) -> Any:
    """An argument with `Axes` in place of values; they are listed in `tensors` too."""
    if isinstance(arg, Value):
        solution, i = node.solution, arg.index
        dims = solution.dims.get(i)
        if dims is None:  # a tensor that is no parameter, buffer or attribute of a module
            dims = solution.dims[i] = tuple([node.new(n, "constant tensor") for n in arg.shape])
        seen = Axes(arg, dims, i in solution.weights, position)
        tensors.append(seen)
        return seen
    if not isinstance(arg, NESTS) or not arg or type(arg[0]) is int:
        return arg
    return type(arg)([_wrap(node, tensors, a) for a in arg])


def _follow_indices(node: Node, tensors: list[Axes]) -> None:
    """Index tensors stay what they are through views; where their numbers are used otherwise, their dim is fixed."""
    indexes = node.solution.indexes
    for t in tensors:
        dim = indexes.get(t.value.index)
        if dim is None or t.value.index in node.taken:
            continue
        if node.op.target in _MOVES:
            for value in node.op.outputs:
                if value is not None:
                    indexes[value.index] = dim
        else:
            node.freeze(dim, "indices along the axis are results")


def _set_outputs(node: Node, tensors: list[Axes]) -> None:
    solution = node.solution
    made_of_weights = bool(tensors) and all(t.is_weight for t in tensors)
    for i, value in enumerate(node.op.outputs):
        if value is None:
            continue
        if i < len(node.results):
            dims = node.results[i]
        else:  # a second output such as saved statistics, or an output of an unknown operator
            dims = tuple(node.new(n, "output without a rule") for n in value.shape)
        assert tuple([d.size for d in dims]) == value.shape, f"rule of {node.op.where} gave {dims} for {value.shape}"
        if value.index in solution.dims:  # written in place
            for a, b in zip(dims, solution.dims[value.index], strict=True):
                node.equate(a, b)
        else:
            solution.dims[value.index] = dims
            if made_of_weights:
                solution.weights.add(value.index)


def settle_ties(solution: Solution) -> None:
    """Reduce every tie to ties of leaves; a tie with a frozen leaf, or of unlike dims, freezes both."""
    changed = True
    while changed:
        pairs: list[tuple[Dim, Dim, str]] = []
        changed = False
        for a, b, why in solution.ties:
            changed |= _tie(a, b, why, pairs)
        solution.ties = pairs


def _tie(a: Dim, b: Dim, why: str, pairs: list[tuple[Dim, Dim, str]]) -> bool:
    """Append the ties of leaves that make two dims keep equal counts; tell whether anything was frozen."""
    a, b = find(a), find(b)
    if a is b:
        return False
    if isinstance(a, Leaf) and isinstance(b, Leaf):
        if (a.frozen is None) != (b.frozen is None):
            freeze(a, f"tied to a frozen dim, {b.frozen}")
            freeze(b, f"tied to a frozen dim, {a.frozen}")
            return True
        if a.frozen is None:
            pairs.append((a, b, why))
        return False
    one, two = linear_leaves(a), linear_leaves(b)
    if one and two and a.size == b.size:
        pairs += [(one[0], leaf, why) for leaf in dict.fromkeys([*one, *two]) if leaf is not one[0]]
        return False
    for kind in (Cat, Prod):
        if isinstance(a, kind) and isinstance(b, kind):
            xs, ys = (d.parts if isinstance(d, Cat) else d.factors for d in (a, b))
            if [x.size for x in xs] == [y.size for y in ys]:
                frozen = [_tie(x, y, why, pairs) for x, y in zip(xs, ys, strict=True)]
                return any(frozen)
    freeze(a, why)
    freeze(b, why)
    return True
