"""The dimension algebra: what an axis of a tensor is made of, and when two axes are the same.

An axis is a `Dim`:

    Leaf            an independent dimension of some size
    Cat[a, b, …]    segments one after another
    Prod[o, i]      an outer × inner grid, as einops writes `(o i)`; the inner one runs fastest

Operators say which axes are equal; `unify` solves each equation at once by substitution (Robinson's unification with
splitting and factoring). What is left when all equations are solved are the network's few independent dimensions.
A leaf that must keep its size is frozen and carries the reason; freezing spreads through everything it is unified with.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class AlignError(Exception):
    """Two dims of one size have no common refinement, for example `Prod[2, 3]` and `Prod[3, 2]`."""


class Dim:
    """Base of the three kinds of dim. Immutable but for a leaf's substitution and its frozen reason."""

    __slots__ = ("size",)
    size: int


class Leaf(Dim):
    """An independent dimension; after substitution a name for another dim."""

    __slots__ = ("bound", "frozen")

    def __init__(self, size: int, frozen: str | None = None) -> None:
        self.size = size
        self.frozen = frozen  # why it must keep its size; None where it may shrink
        self.bound: Dim | None = None

    def __repr__(self) -> str:
        return f"{self.size}{'!' if self.frozen else ''}" if self.bound is None else repr(self.bound)


class Cat(Dim):
    """Segments one after another. Build with `cat`."""

    __slots__ = ("parts",)

    def __init__(self, parts: tuple[Dim, ...]) -> None:
        self.parts = parts
        self.size = sum(p.size for p in parts)

    def __repr__(self) -> str:
        return f"Cat{list(self.parts)}"


class Prod(Dim):
    """A grid, outermost factor first. Build with `prod`."""

    __slots__ = ("factors",)

    def __init__(self, factors: tuple[Dim, ...]) -> None:
        self.factors = factors
        self.size = math.prod(f.size for f in factors)

    def __repr__(self) -> str:
        return f"Prod{list(self.factors)}"


ONE = Prod(())
"""The axis of size 1. It has no leaf: it can't shrink, and broadcasting equates it with nothing."""


def new(size: int, frozen: str | None = None) -> Dim:
    """A fresh leaf, or `ONE`."""
    return ONE if size == 1 else Leaf(size, frozen)


def cat(parts: Iterable[Dim]) -> Dim:
    """Concatenate dims: nested `Cat`s are flattened, empty segments dropped, a single segment is itself.

    >>> cat([Leaf(2), cat([Leaf(3), Leaf(4)])])
    Cat[2, 3, 4]
    """
    flat = [q for p in parts for q in (p.parts if isinstance(p, Cat) else (p,)) if q.size]
    return flat[0] if len(flat) == 1 else Cat(tuple(flat))


def prod(factors: Iterable[Dim]) -> Dim:
    """Multiply dims: nested `Prod`s are flattened, factors of size 1 vanish, a single factor is itself.

    >>> prod([Leaf(2), Leaf(1), prod([Leaf(3), Leaf(4)])])
    Prod[2, 3, 4]
    """
    flat = [g for f in factors for g in (f.factors if isinstance(f, Prod) else (f,)) if g.size != 1]
    return flat[0] if len(flat) == 1 else Prod(tuple(flat)) if flat else ONE


def find(dim: Dim) -> Dim:
    """The dim with every substitution made, in normal form. Unbound leaves are themselves."""
    if isinstance(dim, Leaf):
        if dim.bound is not None:
            dim.bound = found = find(dim.bound)
            return found
        return dim
    children = dim.parts if isinstance(dim, Cat) else dim.factors  # type: ignore[attr-defined]
    for child in children:
        if (type(child) is not Leaf or child.bound is not None) and find(child) is not child:
            found_all = [find(c) for c in children]
            return cat(found_all) if isinstance(dim, Cat) else prod(found_all)
    return dim


def leaves(dim: Dim) -> list[Leaf]:
    """Every unbound leaf of a dim, left to right, as often as it occurs."""
    dim = find(dim)
    if isinstance(dim, Leaf):
        return [dim]
    children = dim.parts if isinstance(dim, Cat) else dim.factors  # type: ignore[attr-defined]
    return [leaf for child in children for leaf in leaves(child)]


def freeze(dim: Dim, reason: str) -> None:
    """Make every leaf of a dim keep its size. The first reason given to a leaf stays."""
    for leaf in leaves(dim):
        if leaf.frozen is None:
            leaf.frozen = reason


def unify(a: Dim, b: Dim) -> None:
    """Solve a = b, index by index, by substitution into their leaves.

    Raises:
        AlignError: no common refinement exists. Leaves may have been split by then, which changes no meaning.

    >>> a, b, heads, head_dim = Leaf(5), Leaf(7), Leaf(3), Leaf(4)
    >>> x = Leaf(12); unify(x, cat([a, b])); unify(x, cat([Leaf(5), Leaf(7)])); find(x)
    Cat[5, 7]
    >>> y = Leaf(12); unify(y, prod([heads, head_dim])); unify(y, prod([Leaf(6), Leaf(2)])); find(y)
    Prod[3, 2, 2]
    """
    if not (type(a) is type(b) is Leaf and a.bound is b.bound is None):  # most are two leaves as they are
        a, b = find(a), find(b)
    if a is b:
        return
    if a.size != b.size:
        raise AlignError(f"{a} and {b} differ in size")
    if isinstance(b, Leaf):
        _bind(b, a)
    elif isinstance(a, Leaf):
        _bind(a, b)
    elif isinstance(a, Cat) and isinstance(b, Cat):
        _unify_cats(a, b)
    elif isinstance(a, Prod) and isinstance(b, Prod):
        inner = min(a.factors[-1].size, b.factors[-1].size)
        (a_outer, a_inner), (b_outer, b_inner) = factor(a, inner), factor(b, inner)
        unify(a_inner, b_inner)
        unify(a_outer, b_outer)
    else:
        grid, row = (a, b) if isinstance(a, Prod) else (b, a)
        assert isinstance(grid, Prod)
        assert isinstance(row, Cat)
        _unify_grid(grid, row)


def _bind(leaf: Leaf, target: Dim) -> None:
    if leaf.frozen is not None:
        freeze(target, leaf.frozen)
    leaf.bound = target


def _unify_cats(a: Cat, b: Cat) -> None:
    """Align from the left; the longer segment is split."""
    rest_a, rest_b = list(a.parts)[::-1], list(b.parts)[::-1]
    while rest_a and rest_b:
        head_a, head_b = _pop_segment(rest_a), _pop_segment(rest_b)
        if head_a.size > head_b.size:
            head_a, tail = split(head_a, head_b.size)
            rest_a.append(tail)
        elif head_b.size > head_a.size:
            head_b, tail = split(head_b, head_a.size)
            rest_b.append(tail)
        unify(head_a, head_b)


def _pop_segment(stack: list[Dim]) -> Dim:
    """Pop the next segment; one that an earlier step has turned into several is opened first."""
    head = find(stack.pop())
    if isinstance(head, Cat):
        stack.extend(head.parts[:0:-1])
        return find(head.parts[0])
    return head


def _unify_grid(grid: Prod, row: Cat) -> None:
    """Cat ~ Prod: segments, or runs of them, are whole rows of the grid, so the outer factor splits as they do."""
    inner = prod(grid.factors[1:])
    outers: list[Dim] = []
    run: list[Dim] = []
    for part in row.parts:
        run.append(part)
        if sum(p.size for p in run) % inner.size == 0:
            rows, cells = factor(cat(run), inner.size)
            unify(inner, cells)
            outers.append(rows)
            run = []
    unify(grid.factors[0], cat(outers))


def split(dim: Dim, size: int) -> tuple[Dim, Dim]:
    """Cut a dim after `size` indices. Raises AlignError where the cut goes through a row of a grid.

    >>> x = Leaf(12); unify(x, prod([Leaf(3), Leaf(4)])); split(x, 8)
    (Prod[2, 4], 4)
    """
    dim = find(dim)
    if not 0 < size < dim.size:
        raise AlignError(f"{dim} can't be cut after {size}")
    if isinstance(dim, Leaf):
        left, right = new(size, dim.frozen), new(dim.size - size, dim.frozen)
        dim.bound = cat([left, right])
        return left, right
    if isinstance(dim, Cat):
        before, after = [], list(dim.parts)
        while after and after[0].size <= size:
            size -= after[0].size
            before.append(after.pop(0))
        if size:
            left_part, after[0] = split(after[0], size)
            before.append(left_part)
        return cat(before), cat(after)
    assert isinstance(dim, Prod)
    inner = prod(dim.factors[1:])
    if size % inner.size:
        raise AlignError(f"{dim} can't be cut after {size}, which is within a row of {inner.size}")
    top, bottom = split(dim.factors[0], size // inner.size)
    return prod([top, inner]), prod([bottom, inner])


def factor(dim: Dim, inner_size: int) -> tuple[Dim, Dim]:
    """Write a dim as outer × inner with the given inner size. Raises AlignError where its structure forbids that.

    >>> factor(prod([Leaf(6), Leaf(4)]), 8)
    (3, Prod[2, 4])
    """
    dim = find(dim)
    if inner_size == 1:
        return dim, ONE
    if inner_size == dim.size:
        return ONE, dim
    if dim.size % inner_size:
        raise AlignError(f"{dim} has no inner factor of {inner_size}")
    if isinstance(dim, Leaf):
        outer, inner = new(dim.size // inner_size, dim.frozen), new(inner_size, dim.frozen)
        dim.bound = prod([outer, inner])
        return outer, inner
    if isinstance(dim, Cat):
        pairs = [factor(part, inner_size) for part in dim.parts]
        for _, other in pairs[1:]:
            unify(pairs[0][1], other)
        return cat(o for o, _ in pairs), pairs[0][1]
    assert isinstance(dim, Prod)
    rest, last = prod(dim.factors[:-1]), dim.factors[-1]
    if last.size >= inner_size:
        outer, inner = factor(last, inner_size)
        return prod([rest, outer]), inner
    if inner_size % last.size:
        raise AlignError(f"{dim} has no inner factor of {inner_size}")
    outer, inner = factor(rest, inner_size // last.size)
    return outer, prod([inner, last])


def count(dim: Dim, counts: Mapping[Leaf, int]) -> int:
    """Size of a dim once each leaf in `counts` has that many indices left; other leaves are whole.

    >>> h, d = Leaf(4), Leaf(8)
    >>> count(cat([prod([h, d]), Leaf(3)]), {h: 2})
    19
    """
    dim = find(dim)
    if isinstance(dim, Leaf):
        return counts.get(dim, dim.size)
    if isinstance(dim, Cat):
        return sum(count(p, counts) for p in dim.parts)
    assert isinstance(dim, Prod)
    return math.prod(count(f, counts) for f in dim.factors)


def linear_leaves(dim: Dim) -> list[Leaf] | None:
    """The free leaves of a dim whose count is a sum of multiples of their counts; None where it isn't.

    Two such dims of one size keep equal counts when all their leaves keep the same fraction.

    >>> a, b = Leaf(4), Leaf(3)
    >>> linear_leaves(cat([prod([a, Leaf(2, "fixed")]), b, b])) == [a, b, b], linear_leaves(prod([a, b]))
    (True, None)
    """
    dim = find(dim)
    if isinstance(dim, Leaf):
        return None if dim.frozen else [dim]
    if isinstance(dim, Cat):
        parts = [linear_leaves(p) for p in dim.parts]
        return None if any(p is None for p in parts) else [leaf for p in parts if p for leaf in p]
    assert isinstance(dim, Prod)
    free = [f for f in dim.factors if any(leaf.frozen is None for leaf in leaves(f))]
    return linear_leaves(free[0]) if len(free) == 1 else None


def kept(dim: Dim, keep: Mapping[Leaf, Tensor]) -> Tensor:
    """Indices of a dim that are left, sorted: kept(Cat[a, b]) = kept(a) ++ |a| + kept(b); kept(Prod[o, i]) = grid.

    >>> h, d = Leaf(3), Leaf(2)
    >>> kept(prod([h, d]), {h: torch.tensor([0, 2])})
    tensor([0, 1, 4, 5])
    """
    dim = find(dim)
    if isinstance(dim, Leaf):
        return keep[dim] if dim in keep else torch.arange(dim.size)
    if isinstance(dim, Cat):
        starts = torch.tensor([0, *(p.size for p in dim.parts)]).cumsum(0)
        return torch.cat([kept(p, keep) + start for p, start in zip(dim.parts, starts.tolist(), strict=False)])
    assert isinstance(dim, Prod)
    index = torch.zeros(1, dtype=torch.long)
    for f in dim.factors:
        index = (index[:, None] * f.size + kept(f, keep)[None, :]).reshape(-1)
    return index
