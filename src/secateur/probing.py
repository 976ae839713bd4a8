"""Widths that a skeleton is tried with, so that what follows a width can be seen to follow it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator

from secateur.dims.algebra import Leaf
from secateur.graph import Graph

_FRACTIONS = (0.5, 0.75, 0.6, 0.9, 0.55, 0.8, 0.7, 0.65)
_NEXT = 3  # fractions further for each turn


def probing_counts(graph: Graph, turn: int = 0) -> dict[Leaf, int]:
    """Widths to probe with: different fractions, so that few dims are confused; tied dims keep the same one.

    Each `turn` deals the fractions out anew: what one set of widths hides by chance, another shows.
    """
    fractions = itertools.islice(itertools.cycle(_FRACTIONS), turn * _NEXT, None)
    return _spread((tied, step, max(1, int(step * next(fractions)))) for tied, step in _tied(graph))


def telling_counts(graph: Graph, turn: int = 0) -> dict[Leaf, int]:
    """Widths that differ for dims of one size to which `probing_counts` gives the same."""
    first, seen = probing_counts(graph, turn), Counter[tuple[int, int]]()

    def widths() -> Iterator[tuple[list[Leaf], int, int]]:
        for tied, step in _tied(graph):
            alike = (tied[0].size, first[tied[0]])
            yield tied, step, max(1, step - 1 - seen[alike] % max(1, step - 2))
            seen[alike] += 1

    return _spread(widths())


def _tied(graph: Graph) -> Iterator[tuple[list[Leaf], int]]:
    """Leaves that keep the same fraction, and how many steps of equal fractions their sizes allow."""
    leaf_of = {g.name: g.leaf for g in graph.prunable}
    seen: set[Leaf] = set()
    for g in graph.prunable:
        if g.leaf not in seen:
            tied = [g.leaf, *(leaf_of[name] for name in g.tied_to)]
            seen.update(tied)
            yield tied, math.gcd(*(leaf.size for leaf in tied))


def _spread(widths: Iterable[tuple[list[Leaf], int, int]]) -> dict[Leaf, int]:
    return {leaf: leaf.size // step * n for tied, step, n in widths for leaf in tied}
