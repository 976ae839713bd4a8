"""The graph: a captured network with its equations solved.

Later steps read it; the repair loop alone freezes and ties in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property

import torch
from torch import nn

import secateur.dims.rules  # noqa: F401  registers the rules of operators
from secateur.capture import capture
from secateur.collecting import uncollected
from secateur.dims.algebra import Leaf
from secateur.dims.cost import Cost, CostModel
from secateur.dims.groups import Group, build_groups
from secateur.dims.rule import Solution
from secateur.dims.solve import settle_ties, solve
from secateur.errors import CaptureError, PlanError
from secateur.record import Trace
from secateur.tables import text_table
from secateur.tensors import Inputs


class Graph:
    """What `trace` returns: the record of one forward, its dimensions, groups and cost.

    `groups` lists every independent dimension of the parameters, frozen ones with their reason; `prunable` those that
    may shrink. `notes` says what the record does not show. `print(graph)` shows all of it.
    """

    def __init__(self, trace: Trace, solution: Solution, notes: tuple[str, ...] = ()) -> None:
        self.trace = trace
        self.solution = solution
        self.notes = notes
        self.latency: Callable[[Mapping[Leaf, int]], float] | None = None  # ms at any counts, where it was measured

    @cached_property
    def groups(self) -> list[Group]:
        """Every group, in the order of the network's parameters."""
        return build_groups(self.solution)

    def refresh(self) -> None:
        """Forget what was derived from the solution, after the repair loop froze or tied something in it."""
        settle_ties(self.solution)
        for name in ("groups", "_cost_model"):
            self.__dict__.pop(name, None)

    @property
    def prunable(self) -> list[Group]:
        """The groups that may shrink."""
        return [g for g in self.groups if g.frozen_reason is None]

    @cached_property
    def uncounted(self) -> tuple[str, ...]:
        """Operators without a rule: their multiply-adds, if any, are not in the cost."""
        return tuple(dict.fromkeys(op.where for op in self.solution.unknown))

    @cached_property
    def _cost_model(self) -> CostModel:
        return CostModel(self.solution)

    def cost(self, counts: Mapping[str, int] | None = None) -> Cost:
        """What the model takes when group g keeps counts[g] units; a group that is not mentioned keeps all."""
        by_leaf = self.leaf_counts(counts or {})
        cost = self._cost_model(by_leaf)
        return cost if self.latency is None else replace(cost, latency_ms=self.latency(by_leaf))

    def leaf_counts(self, counts: Mapping[str, int]) -> dict[Leaf, int]:
        """The same counts by leaf. Raises PlanError for a group that does not exist."""
        by_name = {g.name: g.leaf for g in self.groups}
        if unknown := [name for name in counts if name not in by_name]:
            raise PlanError(f"No group {unknown[0]!r} in this model. Known: {', '.join(by_name) or 'none'}.")
        return {by_name[name]: n for name, n in counts.items()}

    def __str__(self) -> str:
        rows = [
            (g.name, g.kind, str(g.size), str(len({m.key for m in g.members})), g.frozen_reason or "prunable")
            for g in self.groups
        ]
        cost = self.cost()
        shapes = ", ".join(f"{v.key} {list(v.shape)}" for v in self.trace.inputs)
        lines = [
            text_table(("group", "kind", "width", "tensors", "state"), rows),
            f"{len(self.prunable)} of {len(self.groups)} groups are prunable; {cost.params:,} parameters,"
            f" {cost.macs:,} MACs at {shapes}",
        ]
        if self.uncounted:
            lines.append("uncounted operators: " + "; ".join(self.uncounted))
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


@torch.inference_mode(False)
def trace(model: nn.Module, inputs: Inputs, *, is_fake: bool = True) -> Graph:
    """Run `model` once on tensors without memory and find what must shrink together.

    Args:
        model: any module; on the meta device too. It is left as it was found.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments. Only shapes and dtypes are used.
        is_fake: False runs on the real tensors, for code that takes another path there; it computes a whole forward.
    Raises:
        CaptureError: the model has no parameters, or its forward fails on these inputs.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> graph = trace(net, torch.zeros(1, 3))
    >>> [(g.name, g.size) for g in graph.prunable]
    [('0 features', 8)]
    >>> graph.cost({"0 features": 4})
    Cost(params=26, macs=20, size_bytes=104, activation_bytes=44, latency_ms=0.0)
    """
    with uncollected() if is_fake else nullcontext():
        record = capture(model, inputs, is_fake=is_fake)
        training, notes = None, []
        if record.ended_by:
            notes.append(f"the record ends at {record.ended_by}: the code goes on by a learned value")
        if record.unread:
            try:
                training = capture(model, inputs, is_training=True)
            except CaptureError as error:
                notes.append(f"what only training uses is kept whole, since its forward can't be captured: {error}")
        return Graph(record, solve(record, training), tuple(notes))
