"""What a network costs at any widths, counted from the record alone.

1 MAC is one multiply-add (2 FLOPs). Matrix products, convolutions and attention are counted; operators that work per
element, normalise or pool are not, by convention. Batch and sequence length are those of the example inputs.
Parameters are those of `model.parameters()`, a tied one counted once; buffers are not parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secateur.dims.algebra import Dim, Leaf, count, find, leaves
from secateur.dims.rule import Solution


@dataclass(frozen=True)
class Cost:
    """What a model takes: parameters, and multiply-accumulates of one forward (1 MAC = 2 FLOPs)."""

    params: int
    macs: int


class CostModel:
    """Parameters and MACs as sums of products of widths: cost = sum over terms of constant * prod of |dim|."""

    def __init__(self, solution: Solution) -> None:
        self._dims: list[Dim] = []
        self._index: dict[int, int] = {}
        tensors = [v for v in solution.trace.tensors.values() if v.source == "parameter"]
        self._params = self._merge(solution.axes(v) for v in tensors)
        self._macs = self._merge(dims for _, dims in solution.macs)

    def __call__(self, counts: Mapping[Leaf, int]) -> Cost:
        """The cost when each leaf in `counts` keeps that many indices and every other leaf is whole."""
        sizes = [count(dim, counts) for dim in self._dims]
        params, macs = (
            sum(n * math.prod(sizes[i] for i in term) for term, n in terms.items())
            for terms in (self._params, self._macs)
        )
        return Cost(params=params, macs=macs)

    def _merge(self, products: Iterable[tuple[Dim, ...]]) -> dict[tuple[int, ...], int]:
        """Products of dims, frozen ones multiplied out, like terms added."""
        terms: dict[tuple[int, ...], int] = {}
        for dims in products:
            constant, free = 1, []
            for dim in map(find, dims):
                if all(leaf.frozen for leaf in leaves(dim)):
                    constant *= dim.size
                else:
                    free.append(self._number(dim))
            key = tuple(sorted(free))
            terms[key] = terms.get(key, 0) + constant
        return terms

    def _number(self, dim: Dim) -> int:
        if (i := self._index.get(id(dim))) is None:
            i = self._index[id(dim)] = len(self._dims)
            self._dims.append(dim)  # also keeps the id from being used again
        return i
