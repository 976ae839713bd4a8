"""What a network costs at any widths, counted from the record alone.

1 MAC is one multiply-add (2 FLOPs). Matrix products, convolutions and attention are counted; operators that work per
element, normalise or pool are not, by convention. Batch and sequence length are those of the example inputs.
Parameters are those of `model.parameters()`, a tied one counted once; buffers are not parameters. `size_bytes` is
parameters and buffers in their own dtypes, without a file's header. `activation_bytes` is the largest sum of
activations that live at the same time (see `secateur.dims.memory`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from secateur.dims.algebra import Dim, Leaf, count, find, leaves
from secateur.dims.memory import lives
from secateur.dims.rule import Solution
from secateur.record import Value


@dataclass(frozen=True)
class Cost:
    """What a model takes: parameters, multiply-accumulates of one forward (1 MAC = 2 FLOPs), bytes, time.

    MACs, activations and time are those of one forward on the example inputs, whole batch. `latency_ms` is 0 where no
    time was measured.
    """

    params: int
    macs: int
    size_bytes: int = 0
    activation_bytes: int = 0
    latency_ms: float = 0.0


_Term = tuple[int, ...]  # numbers of the dims that are multiplied, sorted


class CostModel:
    """Costs as sums of products of widths: cost = sum over terms of constant * prod of |dim|.

    Activations are products too; their sum is taken per operator, over those that live then, and the largest counts.
    """

    def __init__(self, solution: Solution) -> None:
        self._dims: list[Dim] = []
        self._index: dict[int, int] = {}
        tensors = solution.trace.tensors.values()
        own = [(solution.axes(v), v.source == "parameter", v.dtype.itemsize) for v in tensors]
        self._params = self._merge((axes, 1) for axes, is_parameter, _ in own if is_parameter)
        self._size_bytes = self._merge((axes, itemsize) for axes, _, itemsize in own)
        self._macs = self._merge((dims, 1) for _, dims in solution.macs)
        self._n_moments = len(solution.trace.ops) + 2  # before the first operator, during each, after the last
        self._lives = [
            (life.first + 1, life.last + 1, *self._term(*_storage(solution, life.value)))
            for life in lives(solution.trace)
        ]

    def __call__(self, counts: Mapping[Leaf, int]) -> Cost:
        """The cost when each leaf in `counts` keeps that many indices and every other leaf is whole."""
        sizes = [count(dim, counts) for dim in self._dims]
        return Cost(
            params=_total(self._params, sizes),
            macs=_total(self._macs, sizes),
            size_bytes=_total(self._size_bytes, sizes),
            activation_bytes=self._peak(sizes),
        )

    def _peak(self, sizes: Sequence[int]) -> int:
        change = [0] * (self._n_moments + 1)
        for first, last, term, constant in self._lives:
            n_bytes = constant * math.prod(sizes[i] for i in term)
            change[first] += n_bytes
            change[last + 1] -= n_bytes
        return max(accumulate(change))

    def _merge(self, products: Iterable[tuple[tuple[Dim, ...], int]]) -> dict[_Term, int]:
        """Products of dims and a constant, like terms added."""
        terms: dict[_Term, int] = {}
        for dims, factor in products:
            term, constant = self._term(dims, factor)
            terms[term] = terms.get(term, 0) + constant
        return terms

    def _term(self, dims: tuple[Dim, ...], constant: int) -> tuple[_Term, int]:
        """The free dims of a product by number, and its constant with the frozen ones multiplied out."""
        free = []
        for dim in map(find, dims):
            if all(leaf.frozen for leaf in leaves(dim)):
                constant *= dim.size
            else:
                free.append(self._number(dim))
        return tuple(sorted(free)), constant

    def _number(self, dim: Dim) -> int:
        if (i := self._index.get(id(dim))) is None:
            i = self._index[id(dim)] = len(self._dims)
            self._dims.append(dim)  # also keeps the id from being used again
        return i


def _total(terms: Mapping[_Term, int], sizes: Sequence[int]) -> int:
    return sum(constant * math.prod(sizes[i] for i in term) for term, constant in terms.items())


def _storage(solution: Solution, value: Value) -> tuple[tuple[Dim, ...], int]:
    return solution.axes(value), value.dtype.itemsize
