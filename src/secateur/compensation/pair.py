"""The dense and the pruned network side by side: which tensor of one is which of the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor, nn

from secateur.capture import capture
from secateur.dims.algebra import Leaf, kept
from secateur.errors import PlanError
from secateur.graph import Graph, trace
from secateur.plans import Plan
from secateur.program import Program, Run
from secateur.record import Op, Value
from secateur.tensors import Inputs
from secateur.verification import leaf_keep


@dataclass
class Lockstep:
    """One batch on its way through both networks."""

    dense: Run
    pruned: Run


class Pair:
    """Both networks as programs, with the same operators in the same order.

    Raises:
        PlanError: the pruned network is not what the plan makes of the dense one.
        CaptureError: a forward can't be run operator by operator (see `Program`).
    """

    def __init__(self, model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs) -> None:
        self.graph: Graph = trace(model, inputs, is_fake=False)
        self.keep: Mapping[Leaf, Tensor] = leaf_keep(self.graph, plan)
        self.dense = Program(model, self.graph.trace)
        self.pruned = Program(small, capture(small, inputs, is_fake=False))
        befores, nows = self.dense.trace.essential, self.pruned.trace.essential
        if len(befores) != len(nows):
            raise PlanError(
                f"The pruned network runs {len(nows)} operators where the dense one runs {len(befores)}, so its layers"
                " have no counterparts. Verify it against the plan first."
            )
        self.ops: dict[int, Op] = {now.index: before for before, now in zip(befores, nows, strict=True)}

    def start(self, batches: Sequence[Inputs]) -> list[Lockstep]:
        """Runs of both networks, before the first operator."""
        return [Lockstep(self.dense.start(b), self.pruned.start(b)) for b in batches]

    @cached_property
    def _twins(self) -> dict[int, Value]:
        pairs = [*zip(self.pruned.trace.inputs, self.dense.trace.inputs, strict=True)]
        for now in self.pruned.trace.essential:
            before = self.ops[now.index]
            pairs += [(a, b) for a, b in zip(now.outputs, before.outputs, strict=True) if a and b]
            # Copies are in one record and not in the other: what an operator takes leads past them.
            pairs += [(a, b) for a, b in zip(now.values, before.values, strict=False) if a.source == b.source == "op"]
        return {a.index: b for a, b in reversed(pairs)}

    def twin(self, value: Value) -> Value | None:
        """The dense network's value for one of the pruned network."""
        return self._twins.get(value.index)

    def expected(self, run: Run, value: Value) -> Tensor:
        """A tensor of a dense run, cut to the indices that stay."""
        tensor = run[value]
        for axis, dim in enumerate(self.graph.solution.axes(value)):
            index = kept(dim, self.keep)
            if len(index) < dim.size:
                tensor = tensor.index_select(axis, index.to(tensor.device))
        return tensor
