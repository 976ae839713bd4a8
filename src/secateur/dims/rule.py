"""What a rule sees: an operator as a `Node`, its tensors as `Axes`, and the solution that its statements go into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from secateur.dims.algebra import ONE, AlignError, Dim, Leaf, find, freeze, leaves, new, unify
from secateur.record import Op, Trace, Value
from secateur.registry import Registry

Rule = Callable[..., None]
OP_RULES: Registry[torch._ops.OpOverload | str, Rule] = Registry("operator rule")
"""By operator, or by name (`library::operator`) where its library may not be loaded."""


def rule_of(target: torch._ops.OpOverload) -> Rule | None:
    """The rule of an operator; the one for pointwise operators where torch says that it is one; else None."""
    rule = OP_RULES.get(target) or OP_RULES.get(target.name())  # type: ignore[no-untyped-call]
    if rule is None and torch.Tag.pointwise in target.tags:
        return OP_RULES[torch.ops.aten.add.Tensor]
    return rule


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


@dataclass(eq=False, slots=True)  # as `record.Value`: many are made
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
        dims = self.dims[value.index]
        found = tuple([find(d) for d in dims])
        if found != dims:  # dims compare by identity
            self.dims[value.index] = found  # the next look is short
        return found


class Node:
    """One operator, as a rule sees it."""

    __slots__ = ("_where", "op", "results", "solution", "taken")

    def __init__(self, solution: Solution, op: Op) -> None:
        self.solution = solution
        self.op = op
        self.results: list[tuple[Dim, ...]] = []
        self.taken: set[int] = set()  # index tensors that the rule used as such
        self._where = ""  # spelled once

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        value = self.op.outputs[0]
        assert value is not None
        return value.shape

    def reason(self, why: str) -> str:
        self._where = self._where or self.op.where
        return f"{why}: {self._where}"

    def new(self, size: int, why_frozen: str | None = None) -> Dim:
        """A fresh dim, frozen where a reason is given."""
        return new(size, self.reason(why_frozen) if why_frozen and size != 1 else None)

    def equate(self, a: Dim, b: Dim) -> None:
        """State that two axes are the same, index by index. Where no alignment exists, both are frozen."""
        if a is b or (type(b) is Leaf and b.bound is a):
            return
        try:
            unify(a, b)
        except AlignError as error:
            why = self.reason(f"no alignment ({error})")
            freeze(a, why)
            freeze(b, why)

    def freeze(self, dim: Dim, why: str) -> None:
        """Make an axis keep its size and order."""
        if dim is ONE or (type(dim) is Leaf and dim.bound is None and dim.frozen is not None):
            return
        if any(leaf.frozen is None for leaf in leaves(dim)):
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
