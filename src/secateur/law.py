"""The numeric law: *with the readers of the dropped slices zeroed, the original computes what the pruned model does.*

The original runs on its own code at full width. At each operator that sums over a dropped index, that index is zeroed
first; a maximum or softmax sees the lowest number there instead. Where an operator normalises across the dropped axis
(layer norm, mean, attention's default scale) no filling is exact, and the operator alone is computed re-normalised,
over the kept indices; so is a scale that the code computes from a width.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from secateur.choices import as_chosen, chosen
from secateur.dims.algebra import Dim, Leaf, kept, leaves
from secateur.dims.rule import Position, Read
from secateur.graph import Graph
from secateur.observe import Follower, passes
from secateur.record import Op

_N_SAMPLES = 64
_STRUCTURAL = 1e-2
"""Relative difference of one operator's output that rounding can't explain."""

_MIDDLE = 1e-3
"""How far from the middle of two whole numbers rounding errors may have moved what is rounded."""

Samples = dict[int, Tensor]
"""By place in the pruned model's essential record: sampled values of the first output."""


class Sampler:
    """Watches the capture of the pruned model: samples what each operator gives, before anything writes over it."""

    def __init__(self) -> None:
        self.at = 0
        self.samples: Samples = {}
        self.orders: dict[int, Tensor] = {}  # by place: the indices that an ordering operator gives
        self.rounded: dict[int, Tensor] = {}  # by place: what rounding gives
        self.results: list[Tensor] = []

    def operator(self, func: Any, args: Any, out: Any) -> None:
        """Called after each operator."""
        if not passes(func, args, out):
            if (first := _first(out)) is not None:
                self.samples[self.at] = first[_places(tuple(first.shape))].double()
            if (order := chosen(func, out)) is not None:
                self.orders[self.at] = order.clone()
            if func is torch.ops.aten.round.default:
                self.rounded[self.at] = out.clone()
            self.at += 1

    def result(self, tensors: list[Tensor]) -> None:
        """Called with the tensors of the model's output."""
        self.results = tensors


class Law(Follower):  # type: ignore[no-untyped-call]
    """Runs the original as if the dropped indices were not there, and compares each operator with the samples.

    Args:
        keep: the indices that stay, by leaf.
        scales: by operator, arguments that the code computed from a width, as the pruned model has them.
        seen: what the pruned model gave, operator by operator.

    `problem` names the first operator that differs, or that the real run did not call as recorded.
    """

    def __init__(
        self,
        graph: Graph,
        keep: dict[Leaf, Tensor],
        scales: Mapping[int, Mapping[Position, Any]],
        seen: Sampler,
    ) -> None:
        super().__init__(graph.trace)
        self.graph = graph
        self.leaf_keep = keep
        self.scales = scales
        self.seen = seen
        self._kept: dict[int, tuple[Dim, Tensor | None]] = {}  # by id of the dim, which is kept alive
        self.reads: dict[int, list[Read]] = {}
        for read in graph.solution.reads:
            if self._shrinks(read.dim):
                self.reads.setdefault(read.op, []).append(read)
        self.references = {
            r.op: r.reference for r in graph.solution.renormalised if any(self._shrinks(d) for d in r.dims)
        }

    def keep(self, dim: Dim) -> Tensor:
        """Kept indices of a dim."""
        index = self._shrunk(dim)
        return torch.arange(dim.size) if index is None else index

    def _shrunk(self, dim: Dim) -> Tensor | None:
        """Kept indices of a dim that shrinks, None of another; found once for each."""
        if id(dim) not in self._kept:
            self._kept[id(dim)] = dim, kept(dim, self.leaf_keep) if self._shrinks(dim) else None
        return self._kept[id(dim)][1]

    def call(self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        i = op.index
        for position, value in self.scales.get(i, {}).items():
            old = args[position] if isinstance(position, int) else kwargs[position]
            new = torch.full_like(old, value) if isinstance(old, Tensor) else value
            args, kwargs = put(args, kwargs, position, new)
        for read in self.reads.get(i, ()):
            x = args[read.position] if isinstance(read.position, int) else kwargs[read.position]
            args, kwargs = put(args, kwargs, read.position, _without(x, read, self.keep(read.dim).to(x.device)))
        reference = self.references.get(i)
        if reference is not None:
            out = reference(func, args, kwargs, self.keep)
        else:
            out = super().call(op, func, args, kwargs)
        if (order := self.seen.orders.get(self.place)) is not None:
            out = as_chosen(func, args, kwargs, out, self._renumbered(op, -1, order))
        if (rounded := self.seen.rounded.get(self.place)) is not None:
            out = self._as_rounded(op, args[0], out, rounded)
        self._compare(op, self.place, out, args)
        return out

    def _as_rounded(self, op: Op, x: Tensor, out: Tensor, rounded: Tensor) -> Tensor:
        """What rounding gives, but as the pruned model rounds where x is so near the middle that either is right."""
        value = op.outputs[0]
        assert value is not None
        index = [self._shrunk(d) for d in self.graph.solution.dims[value.index]]
        kept = [torch.arange(n) if i is None else i for i, n in zip(index, out.shape, strict=True)]
        if tuple(map(len, kept)) != tuple(rounded.shape):
            return out
        at = tuple(i.to(x.device).view(-1, *[1] * (x.ndim - axis - 1)) for axis, i in enumerate(kept))
        out = out.clone()
        out[at] = torch.where((x[at] - rounded).abs() <= 0.5 + _MIDDLE, rounded, out[at])
        return out

    def _renumbered(self, op: Op, output: int, values: Tensor) -> Tensor:
        """Elements of an output; where they index a dim, the pruned model's i is the i-th that it keeps."""
        value = op.outputs[output]
        dim = None if value is None else self.graph.solution.indexes.get(value.index)
        return values if dim is None else self.keep(dim).to(values.device)[values.long()].to(values.dtype)

    def _shrinks(self, dim: Dim) -> bool:
        return any(leaf in self.leaf_keep for leaf in leaves(dim))

    def _compare(self, op: Op, place: int, out: Any, args: Any) -> None:
        """Note the first operator whose kept values are not those of the pruned model."""
        first = _first(out)
        sample = self.seen.samples.get(place)
        if self.problem or first is None or sample is None:
            return
        value = op.outputs[0]
        assert value is not None
        index = [self._shrunk(d) for d in self.graph.solution.dims[value.index]]
        shape = tuple(n if i is None else len(i) for i, n in zip(index, first.shape, strict=True))
        at = tuple((p if i is None else i[p]).to(first.device) for i, p in zip(index, _places(shape), strict=True))
        mine, values = first[at].double(), self._renumbered(op, 0, sample)
        gap, largest = float((mine - values).abs().max()), float(mine.abs().max())
        if gap <= _STRUCTURAL * largest < math.inf:  # all of the output is looked at only where its samples don't do
            return
        # A difference of large numbers may be all rounding, so its inputs count towards the scale.
        inputs = [_largest(a) for a in args if isinstance(a, Tensor)]
        scale = max([_largest(_shortened(first, index)), 1e-3 * max(inputs, default=0.0)])
        both = mine.isfinite() & values.isfinite()
        gap = float((mine - values)[both].abs().max()) if both.any() else 0.0
        if not torch.equal(mine.isfinite(), values.isfinite()) or gap > _STRUCTURAL * scale:
            self.problem = f"values first differ, by {gap:.2g} where the largest is {scale:.2g}, at {op.where}"


def _shortened(x: Tensor, index: Sequence[Tensor | None]) -> Tensor:
    """What is left of a tensor, of whose axes some keep these indices alone."""
    for axis, i in enumerate(index):
        if i is not None:
            x = x.index_select(axis, i.to(x.device))
    return x


def _first(out: Any) -> Tensor | None:
    first = out[0] if isinstance(out, tuple | list) and out else out
    usable = isinstance(first, Tensor) and first.numel() > 0 and not first.is_complex() and not first.is_meta
    return first if usable else None


def _largest(x: Tensor) -> float:
    """Largest finite |x|."""
    if x.numel() == 0 or x.is_complex():
        return 0.0
    low, high = torch.aminmax(x.detach())
    largest = max(abs(float(low)), abs(float(high)))
    if math.isfinite(largest):
        return largest
    return float(torch.nan_to_num(x.detach(), nan=0.0, posinf=0.0, neginf=0.0).abs().max())


@functools.lru_cache(maxsize=1 << 12)
def _places(shape: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Coordinates of up to 64 elements, spread evenly over a tensor."""
    n = math.prod(shape)
    flat = torch.linspace(0, n - 1, min(n, _N_SAMPLES), dtype=torch.float64).long()
    return torch.unravel_index(flat, shape) if shape else ()


def put(args: Any, kwargs: dict[str, Any], position: Position, value: Any) -> tuple[Any, dict[str, Any]]:
    """The arguments of a call with another value at a position."""
    if isinstance(position, str):
        return args, {**kwargs, position: value}
    return (*args[:position], value, *args[position + 1 :]), kwargs


def _without(x: Tensor, read: Read, index: Tensor) -> Tensor:
    """A tensor in which the indices that are not kept have no say in the operator."""
    if read.how == "select":
        return x.index_select(read.axis, index)
    dropped = torch.ones(x.shape[read.axis], dtype=torch.bool, device=x.device).index_fill_(0, index, False)
    info = torch.finfo(x.dtype) if x.dtype.is_floating_point else None
    fill = {"zero": 0, "lowest": -torch.inf if info else 0, "highest": torch.inf if info else 0}[read.how]
    out = torch.empty_like(x)  # keeps the strides, by which torch picks its kernels
    return out.copy_(x).index_fill_(read.axis, dropped.nonzero().flatten(), fill)
