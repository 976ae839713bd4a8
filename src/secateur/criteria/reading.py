"""Where the units of a group are read: which operator sums over them, and the view of its input unit by unit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.choices import Undecided
from secateur.dims.algebra import Dim, Leaf, Prod, find, leaves
from secateur.dims.groups import Member, occurrences
from secateur.dims.rule import Position
from secateur.errors import CaptureError, ConfigError
from secateur.graph import Graph, trace
from secateur.observe import Follower
from secateur.record import Op, Value
from secateur.tensors import Inputs, as_call, on_device, tensors_in

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@dataclass(frozen=True)
class Reading:
    """One place where an operator sums over the units of a group, and gives something that has no such units.

    Args:
        value: number of the tensor that is read; operators that read the same tensor share it.
        place: where the units stand in it.
        samples: the axis that holds the samples, and whether they are its outer part; None where no axis does.
    """

    group: str
    op: int
    position: Position
    value: int
    place: Member
    samples: tuple[int, bool] | None

    def units(self, x: Tensor, n_samples: int) -> Tensor:
        """Return the tensor that is read, unit by unit, as a view: (n_samples, size, *everything else).

        The first axis has length 1 where samples do not stand on an axis of their own.

        >>> reading = Reading("g", 0, 0, 0, Member("", 1, size=2, stride=3, loops=((3, 1),)), (0, True))
        >>> reading.units(torch.zeros(4 * 5, 6), n_samples=4).shape  # samples x positions, 2 heads x 3 features
        torch.Size([4, 2, 3, 5])
        """
        seen = self.place.view(x)
        n_inner = 1 + len(self.place.loops)
        if self.samples is None:
            return seen.unsqueeze(0)
        axis, is_outer = self.samples
        at = n_inner + axis - (axis > self.place.axis)
        parts = (n_samples, -1) if is_outer else (-1, n_samples)
        split = torch.unflatten(seen, at, parts)
        return split.movedim((at if is_outer else at + 1, 0), (0, 1))


class Readings:
    """The readings of some groups of a model, by operator; found on the first batch, whose forward is traced.

    `trace` is the record that the operators belong to.
    """

    def __init__(self, model: nn.Module, groups: Iterable[Group], inputs: Inputs) -> None:
        graph = trace(model, inputs)
        names = {group.name for group in groups}
        wanted = {group.leaf: group.name for group in graph.groups if group.name in names}
        samples = _sample_leaves(graph, sample_count(inputs))
        self.trace = graph.trace
        self.n_samples = sample_count(inputs)  # of the batch that was traced
        self.by_op: dict[int, list[Reading]] = {}
        for read in graph.solution.reads:
            if read.how != "zero":
                continue
            op = graph.trace.ops[read.op]
            value = op.args[read.position] if isinstance(read.position, int) else op.kwargs[read.position]
            dims = graph.solution.axes(value)
            for leaf, offset, stride, loops in occurrences(dims[read.axis]):
                if leaf in wanted and not _passes_on(graph, op, leaf):
                    place = Member(f"%{value.index}", read.axis, "reader", leaf.size, offset, stride, loops)
                    found = Reading(wanted[leaf], op.index, read.position, value.index, place, _on_axis(dims, samples))
                    self.by_op.setdefault(op.index, []).append(found)


def sample_count(inputs: Inputs) -> int:
    """Return the length of the first axis of the first tensor among a model's inputs, 1 if it has no axis."""
    found = tensors_in(as_call(inputs))
    if not found:
        raise ConfigError(f"A batch of inputs, {type(inputs).__name__}, holds no tensor. Pass what the model takes.")
    return len(found[0]) if found[0].dim() else 1


def argument(position: Position, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Return the argument of a call at a position."""
    found: Tensor = args[position] if isinstance(position, int) else kwargs[position]
    return found


def run_along(model: nn.Module, inputs: Inputs, follower: Follower) -> Any:
    """Run the model under a follower of its record, as it is called, and return its outputs.

    Raises:
        CaptureError: the run takes another path than the record, or goes on by a value that it computed.
    """
    args, kwargs = on_device(model, inputs)
    try:
        with follower:
            outputs = model(*args, **kwargs)
    except Undecided as end:
        raise CaptureError(
            "The forward goes on by a number that it computes, where measuring can't follow. "
            "Choose a criterion that takes no data, such as 'l2'."
        ) from end
    if follower.problem:
        raise CaptureError(f"On real data, {follower.problem}. Choose a criterion that takes no data, such as 'l2'.")
    return outputs


def _passes_on(graph: Graph, op: Op, leaf: Leaf) -> bool:
    """Say whether a convolution gives the units that it reads each by itself: they number its groups of channels."""
    if op.target is not torch.ops.aten.convolution.default:
        return False

    def n_axes(value: Value | None) -> int:
        return 0 if value is None else sum(leaf in set(leaves(dim)) for dim in graph.solution.axes(value))

    return n_axes(op.outputs[0]) > 0 and n_axes(op.args[1]) < 2  # a weight that mixes them has them on two axes


def _sample_leaves(graph: Graph, n_samples: int) -> set[Leaf]:
    """Return what the first axis of every input is, where that is the number of samples and more than 1."""
    first = [find(dim) for value in graph.trace.inputs for dim in graph.solution.axes(value)[:1]]
    return {dim for dim in first if isinstance(dim, Leaf) and dim.size == n_samples > 1}


def _on_axis(dims: tuple[Dim, ...], samples: set[Leaf]) -> tuple[int, bool] | None:
    for axis, dim in enumerate(dims):
        factors = dim.factors if isinstance(dim, Prod) else (dim,)
        ends = [find(factors[0]), find(factors[-1])] if factors else []
        for end, is_outer in zip(ends, (True, False), strict=False):
            if isinstance(end, Leaf) and end in samples:
                return axis, is_outer
    return None
