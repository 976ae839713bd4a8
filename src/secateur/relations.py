"""Relations between counts that code imposes: `|a| = |b|`, or `|a| = |b| * |c|` where it computes `a // c`.

A relation is met by keeping the same fraction of the widths on both sides; what would make their ratio change is
frozen. Where there is a choice, the finest width stays free, so that budgets can be met closely.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from secateur.dims.algebra import Cat, Dim, Leaf, Prod, find, leaves, linear_leaves
from secateur.graph import Graph


@dataclass(frozen=True)
class Relation:
    """Leaves to freeze, and leaves that keep the same fraction."""

    frozen: tuple[Leaf, ...]
    tied: tuple[tuple[Leaf, Leaf], ...]


def equal(a: Dim, b: Dim) -> Relation | None:
    """What keeps |a| = |b|, for two dims of one size; None where that is no relation, or nothing would stay free."""
    a, b = find(a), find(b)
    if a is b or a.size != b.size:
        return None
    one, two = linear_leaves(a), linear_leaves(b)
    if one and two:
        first, *others = dict.fromkeys([*one, *two])
        return Relation((), tuple((first, other) for other in others)) if others else None
    pairwise = _pairwise(a, b)
    if pairwise is not None:
        return pairwise
    return _finest(a, b)


def quotient(a: Dim, c: Dim, b: Dim) -> Relation | None:
    """What keeps |a| = |b| // |c|, for dims with |b| = |a| * |c|: one of a and c is fixed, the other follows b.

    Where b keeps its size, so do both of them.
    """
    a, b, c = find(a), find(b), find(c)
    if b.size != a.size * c.size or 1 in (a.size, c.size) or {*leaves(a), *leaves(c)} & {*leaves(b)}:
        return None
    fixed, free = (c, a) if a.size >= c.size else (a, c)
    if linear_leaves(free) is None:  # frozen already, so the other one has to follow
        fixed, free = free, fixed
    whole, part = linear_leaves(b), linear_leaves(free)
    if whole and part:
        first, *others = dict.fromkeys([*whole, *part])
        return Relation(_free(fixed), tuple((first, other) for other in others))
    return Relation((*_free(a), *_free(c), *_free(b)), ()) if not part or not _free(b) else None


def impose(graph: Graph, relations: Iterable[Relation], why: str) -> Callable[[], None]:
    """Add relations to a graph; return what takes them back."""
    ties = list(graph.solution.ties)
    frozen = []
    for relation in relations:
        for leaf in relation.frozen:
            if leaf.frozen is None:
                leaf.frozen = why
                frozen.append(leaf)
        graph.solution.ties += [(a, b, why) for a, b in relation.tied]
    settled = [leaf for leaf in _all_leaves(graph) if leaf.frozen is None]
    graph.refresh()

    def undo() -> None:
        for leaf in (*frozen, *settled):
            leaf.frozen = None
        graph.solution.ties = ties
        graph.refresh()

    return undo


def _all_leaves(graph: Graph) -> list[Leaf]:
    return list({leaf for g in graph.groups for leaf in leaves(g.leaf)})


def _free(dim: Dim) -> tuple[Leaf, ...]:
    return tuple(dict.fromkeys(leaf for leaf in leaves(dim) if leaf.frozen is None))


def _pairwise(a: Dim, b: Dim) -> Relation | None:
    """Two concatenations or two grids of the same sizes, part by part."""
    for kind in (Cat, Prod):
        if isinstance(a, kind) and isinstance(b, kind):
            xs, ys = (d.parts if isinstance(d, Cat) else d.factors for d in (a, b))
            if [x.size for x in xs] == [y.size for y in ys]:
                parts = [equal(x, y) for x, y in zip(xs, ys, strict=True) if find(x) is not find(y)]
                found = [p for p in parts if p is not None]
                if len(found) == len(parts):
                    return Relation(
                        tuple(leaf for p in found for leaf in p.frozen), tuple(t for p in found for t in p.tied)
                    )
    return None


def _finest(a: Dim, b: Dim) -> Relation | None:
    """Of each dim that is no plain width, freeze all but the largest leaf; those two keep the same fraction."""
    frozen: list[Leaf] = []
    kept: list[Leaf] = []
    for dim in (a, b):
        free = _free(dim)
        if not free:
            return Relation((*_free(a), *_free(b)), ())
        linear = linear_leaves(dim)
        if linear:
            kept += dict.fromkeys(linear)
            continue
        if not isinstance(dim, Prod):
            return None
        largest = max(free, key=lambda leaf: leaf.size)
        frozen += [leaf for leaf in free if leaf is not largest]
        kept.append(largest)
    first, *others = dict.fromkeys(kept)
    return Relation(tuple(frozen), tuple((first, other) for other in others)) if others else None
