"""From a trace to solved equations: run each operator's rule, and keep what the later steps need to know.

A rule sees one operator as a `Node` and its tensors as `Axes`. It states which axes are equal, what the output's axes
are, which axes are summed over, and how many multiply-adds that takes. Everything else follows from the algebra.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.capture import Op, Trace, Value
from secateur.dims.algebra import AlignError, Cat, Dim, Leaf, Prod, find, freeze, leaves, linear_leaves, new, unify
from secateur.errors import UnsupportedOpError
from secateur.registry import Registry

Rule = Callable[..., None]
OP_RULES: Registry[torch._ops.OpOverload, Rule] = Registry("operator rule")

Position = int | str
"""Where an argument stands in a call: its index, or its keyword."""


class Axes:
    """A tensor as a rule sees it: one `Dim` per axis. `is_weight` where it is made of parameters alone."""

    __slots__ = ("dims", "is_weight", "position", "value")

    def __init__(self, value: Value, dims: tuple[Dim, ...], is_weight: bool = False, position: Position = -1) -> None:
        self.value = value
        self.dims = dims
        self.is_weight = is_weight
        self.position = position

    def __getitem__(self, axis: int) -> Dim:
        return self.dims[axis]

    def __len__(self) -> int:
        return len(self.dims)

    def __iter__(self) -> Iterator[Dim]:
        return iter(self.dims)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


@dataclass(frozen=True, eq=False)
class Read:
    """An operator mixes the indices of a dim: it sums, averages or takes the maximum over `args[position]`'s `axis`.

    `how` says what a dropped index must look like for the result to be that of the smaller network:
    "zero" (sums), "lowest" / "highest" (maxima, softmax / minima), or "select" (means: the axis itself is shortened).
    """

    op: int
    position: Position
    axis: int
    dim: Dim
    how: str = "zero"


class Keep(Protocol):
    """Maps a dim to the indices of it that are left, on the CPU."""

    def __call__(self, dim: Dim) -> Tensor: ...


Reference = Callable[[Any, tuple[Any, ...], dict[str, Any], Keep], Any]
"""Computes an operator at full width as the smaller network would, given (target, args, kwargs, keep)."""


@dataclass(frozen=True, eq=False)
class Renormalised:
    """An operator that normalises across a dim, so that dropping indices changes what the others become."""

    op: int
    dims: tuple[Dim, ...]
    reference: Reference


@dataclass
class Solution:
    """Solved equations of one trace. `dims` gives the axes of every value, by its index."""

    trace: Trace
    is_training: bool = False
    dims: dict[int, tuple[Dim, ...]] = field(default_factory=dict)
    weights: set[int] = field(default_factory=set)  # values made of parameters alone
    roles: dict[tuple[str, int], str] = field(default_factory=dict)
    owners: dict[int, tuple[str, int]] = field(default_factory=dict)  # id of a parameter's first leaf -> (key, axis)
    reads: list[Read] = field(default_factory=list)
    renormalised: list[Renormalised] = field(default_factory=list)
    macs: list[tuple[int, tuple[Dim, ...]]] = field(default_factory=list)  # (op, factors of its multiply-adds)
    expected: dict[tuple[int, Position], Dim] = field(default_factory=dict)  # an int argument -> the dim that it counts
    shape_decides: set[int] = field(default_factory=set)  # operators whose integer arguments follow from shapes
    indexes: dict[int, Dim] = field(default_factory=dict)  # an integer value -> the dim that its elements index
    minimum: dict[Leaf, int] = field(default_factory=dict)  # indices without which an operator has no value
    ties: list[tuple[Dim, Dim, str]] = field(default_factory=list)
    unknown: list[Op] = field(default_factory=list)

    def axes(self, value: Value) -> tuple[Dim, ...]:
        """The solved dims of a value."""
        return tuple(find(d) for d in self.dims[value.index])


class Node:
    """One operator, as a rule sees it."""

    def __init__(self, solution: Solution, op: Op) -> None:
        self.solution = solution
        self.op = op
        self.results: list[tuple[Dim, ...]] = []
        self.taken: set[int] = set()  # index tensors that the rule used as such

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        value = self.op.outputs[0]
        assert value is not None
        return value.shape

    def reason(self, why: str) -> str:
        return f"{why}: {self.op.where}"

    def new(self, size: int, why_frozen: str | None = None) -> Dim:
        """A fresh dim, frozen where a reason is given."""
        return new(size, self.reason(why_frozen) if why_frozen else None)

    def equate(self, a: Dim, b: Dim) -> None:
        """State that two axes are the same, index by index. Where no alignment exists, both are frozen."""
        try:
            unify(a, b)
        except AlignError as error:
            why = self.reason(f"no alignment ({error})")
            freeze(a, why)
            freeze(b, why)

    def freeze(self, dim: Dim, why: str) -> None:
        """Make an axis keep its size and order."""
        freeze(dim, self.reason(why))

    def tie(self, dims: Sequence[Dim]) -> None:
        """State that axes must keep equal counts, although their indices are independent."""
        self.solution.ties += [(dims[0], d, self.reason("equal counts")) for d in dims[1:]]

    def out(self, *dims: Dim) -> None:
        """Give the next output its axes."""
        self.results.append(tuple(dims))

    def contract(self, x: Axes, x_axis: int, y: Axes, y_axis: int) -> None:
        """State that the operator multiplies and sums over an axis of each of two tensors."""
        self.reads_weight(x, x_axis)
        self.reads_weight(y, y_axis)
        self.read(x, x_axis)
        self.equate(x[x_axis], y[y_axis])

    def read(self, x: Axes, axis: int, how: str = "zero") -> None:
        """State that the operator mixes the indices of an axis (see `Read`)."""
        self.solution.reads.append(Read(self.op.index, x.position, axis % len(x), x[axis], how))

    def indexed_by(self, x: Axes) -> Dim | None:
        """The dim that an integer tensor indexes, where that is known: it came from a top-k or an argmax over it."""
        self.taken.add(x.value.index)
        return self.solution.indexes.get(x.value.index)

    def gives_indices(self, output: int, dim: Dim) -> None:
        """State that the elements of an output index a dim. They are renumbered when it shrinks."""
        value = self.op.outputs[output]
        if value is not None:
            self.solution.indexes[value.index] = dim

    def needs(self, dim: Dim, at_least: int) -> None:
        """State that the operator has no value on fewer indices of a dim."""
        for leaf in leaves(dim):
            self.solution.minimum[leaf] = max(at_least, self.solution.minimum.get(leaf, 1))

    def renormalise(self, dims: Sequence[Dim], reference: Reference) -> None:
        """State that the operator normalises across axes, and how to compute what the smaller network does."""
        self.solution.renormalised.append(Renormalised(self.op.index, tuple(dims), reference))

    def expect(self, position: Position, dim: Dim) -> None:
        """State that an integer argument is the count of a dim, so that it changes when the dim shrinks."""
        self.solution.expected[self.op.index, position] = dim

    def macs(self, *dims: Dim) -> None:
        """Count multiply-adds: the product of the sizes of these axes."""
        self.solution.macs.append((self.op.index, dims))

    def shape_decides(self) -> None:
        """State that the integer arguments only spell out the output's shape, as those of `view` do."""
        self.solution.shape_decides.add(self.op.index)

    def reads_weight(self, x: Axes, axis: int) -> None:
        """Name the contracted axis of a parameter "reader" and its other axes "producer"."""
        if x.is_weight:
            for i, dim in enumerate(x.dims):
                self._role(dim, "reader" if i == axis % len(x) else "producer")

    def role(self, x: Axes | None, role: str) -> None:
        """Name what a parameter is to this operator: "bias", "scale", "shift", "statistic"."""
        if x is not None and x.is_weight:
            for dim in x.dims:
                self._role(dim, role)

    def _role(self, dim: Dim, role: str) -> None:
        if (owner := self.solution.owners.get(id(dim))) is not None:
            self.solution.roles.setdefault(owner, role)


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
        solution.dims[value.index] = tuple(new(n, f"model input {value.key}") for n in value.shape)
    _run(solution)
    unread = set(trace.unread)
    if training is not None:
        _run_training(solution, training)
        unread &= set(training.unread)
    for key in unread:
        for dim in solution.dims[trace.tensors[key].index]:
            freeze(dim, "not used by this forward, which runs in eval mode")
    settle_ties(solution)
    return solution


def _run(solution: Solution) -> None:
    for op in solution.trace.ops:
        _apply_rule(solution, op)
    for value in solution.trace.outputs:
        for dim in (*solution.dims[value.index], *filter(None, [solution.indexes.get(value.index)])):
            freeze(dim, "model output")


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
    whole = value.dtype.is_floating_point or value.dtype.is_complex
    reason = None if whole else f"values of the {value.dtype} buffer {value.key} index something"
    dims = tuple(new(n, reason) for n in value.shape)
    solution.dims[value.index] = dims
    solution.weights.add(value.index)
    for axis, dim in enumerate(dims):
        if isinstance(dim, Leaf):
            solution.owners[id(dim)] = (value.key, axis)


def _apply_rule(solution: Solution, op: Op) -> None:
    node = Node(solution, op)
    tensors: list[Axes] = []

    def axes(value: Value, position: Position = -1) -> Axes:
        if value.index not in solution.dims:  # a tensor that is no parameter, buffer or attribute of a module
            solution.dims[value.index] = tuple(node.new(n, "constant tensor") for n in value.shape)
        seen = Axes(value, solution.dims[value.index], value.index in solution.weights, position)
        tensors.append(seen)
        return seen

    def wrap(arg: Any, position: Position) -> Any:
        if isinstance(arg, Value):
            return axes(arg, position)
        return pytree.tree_map_only(Value, axes, arg) if isinstance(arg, list | tuple) else arg

    args = [wrap(a, i) for i, a in enumerate(op.args)]
    kwargs = {k: wrap(a, k) for k, a in op.kwargs.items()}
    try:
        if op.target in OP_RULES:
            OP_RULES[op.target](node, *args, **kwargs)
        elif torch.Tag.pointwise in op.target.tags:
            OP_RULES[torch.ops.aten.add.Tensor](node, *args, **kwargs)
        else:
            raise UnsupportedOpError("unknown operator")
    except UnsupportedOpError as error:
        for t in tensors:
            for dim in t.dims:
                node.freeze(dim, str(error))
        node.results = []
        solution.unknown.append(op)
    _set_outputs(node, tensors)
    _follow_indices(node, tensors)


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
        assert tuple(d.size for d in dims) == value.shape, f"rule of {node.op.where} gave {dims} for {value.shape}"
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
