"""Operators of a record, rebuilt at any widths with fresh tensors, so that each can be timed by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.dims.algebra import Dim, Leaf, count, leaves
from secateur.dims.memory import is_view
from secateur.dims.rule import Position, Solution
from secateur.measure.runtimes import Call
from secateur.record import Op, Value

MAX_KNOBS = 2  # of one operator: a grid over more has too many points to time


@dataclass(frozen=True, eq=False)
class Knob:
    """Leaves of one operator that are turned together, and the widest axis that they make up."""

    leaves: tuple[Leaf, ...]
    axis: Dim


@dataclass(frozen=True, eq=False)
class SyntheticOp:
    """One operator of a record, apart from its network: its work depends on the record and on its knobs alone."""

    solution: Solution
    op: Op

    @cached_property
    def knobs(self) -> tuple[Knob, ...]:
        """What may shrink in its tensors: leaves that share an axis are one knob, and so are all after the first."""
        found: list[Knob] = []
        for value in self._values():
            for dim in self.solution.axes(value):
                free = dict.fromkeys(leaf for leaf in leaves(dim) if leaf.frozen is None)
                if free:
                    joined = [knob for knob in found if free.keys() & set(knob.leaves)]
                    found = [knob for knob in found if knob not in joined]
                    found.append(_join([*joined, Knob(tuple(free), dim)]))
        if len(found) > MAX_KNOBS:
            found = [*found[: MAX_KNOBS - 1], _join(found[MAX_KNOBS - 1 :])]
        return tuple(found)

    def text(self, counts: Mapping[Leaf, int]) -> str:
        """The call in words: equal texts, equal work."""

        def word(x: Any) -> str:
            if isinstance(x, Value):
                return f"{str(x.dtype).removeprefix('torch.')}{list(self._shape(x, counts))}"
            if isinstance(x, list | tuple):
                return f"[{', '.join(map(word, x))}]"
            return str(x)

        args, kwargs = self._arguments(counts)
        words = [*map(word, args), *(f"{key}={word(x)}" for key, x in kwargs.items())]
        return f"{self.op.target}({', '.join(words)})"

    def call(self, counts: Mapping[Leaf, int], device: torch.device) -> Call:
        """The operator as a call on fresh tensors: halves, or zeros where they may hold indices."""
        args, kwargs = pytree.tree_map_only(
            Value, lambda v: _fresh(self._shape(v, counts), v.dtype, device), self._arguments(counts)
        )
        return lambda: self.op.target(*args, **kwargs)

    def n_bytes(self, counts: Mapping[Leaf, int]) -> int:
        """Bytes of the tensors that it reads and makes."""
        return sum(math.prod(self._shape(value, counts)) * value.dtype.itemsize for value in self._values())

    def _values(self) -> list[Value]:
        inside = [v for v in pytree.tree_leaves((self.op.args, self.op.kwargs)) if isinstance(v, Value)]
        return [*inside, *(v for v in self.op.outputs if v is not None)]

    def _shape(self, value: Value, counts: Mapping[Leaf, int]) -> tuple[int, ...]:
        return tuple(count(dim, counts) for dim in self.solution.axes(value))

    def _arguments(self, counts: Mapping[Leaf, int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments, with the new value of each number that counts a width."""
        ends: dict[tuple[int, ...], tuple[int, ...]] = {}
        for value in self._values():
            new = self._shape(value, counts)
            ends.update({value.shape[i:]: new[i:] for i in range(len(new))})

        def renewed(position: Position, x: Any) -> Any:
            if (dim := self.solution.expected.get((self.op.index, position))) is not None:
                return count(dim, counts)
            if isinstance(x, list | tuple) and x and all(type(n) is int for n in x):
                return list(ends.get(tuple(x), x))  # axes that are spelled out, as `native_layer_norm` has them
            return x

        args = tuple(renewed(i, x) for i, x in enumerate(self.op.args))
        return args, {key: renewed(key, x) for key, x in self.op.kwargs.items()}


def synthetic_ops(solution: Solution) -> list[SyntheticOp]:
    """The operators of a record that compute something: views are left out."""
    return [SyntheticOp(solution, op) for op in solution.trace.essential if any(op.outputs) and not is_view(op)]


def _join(knobs: Sequence[Knob]) -> Knob:
    together = dict.fromkeys(leaf for knob in knobs for leaf in knob.leaves)
    return Knob(tuple(together), max((knob.axis for knob in knobs), key=lambda axis: axis.size))


def _fresh(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.full(shape, 0.5, dtype=dtype, device=device)
    return torch.zeros(shape, dtype=dtype, device=device)
