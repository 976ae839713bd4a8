"""Networks whose upper half of units repeats the lower half: what is dropped can be made up for exactly."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

import secateur
from secateur import Budget, Plan, PruneConfig
from secateur.dims.groups import Group
from secateur.planning import plan_graph
from secateur.repair import repair
from secateur.tensors import named_tensors


def lower_part(model: nn.Module, inputs: Any, groups: Collection[str], width: float = 0.5) -> Plan:
    """The plan that keeps the lower part of some groups, and the others whole."""
    graph = secateur.trace(model, inputs)
    repairer = repair(model, inputs, graph)
    scores = {g.name: -torch.arange(g.size) for g in graph.prunable if g.name in groups}
    whole = {g.name: "kept whole" for g in graph.prunable if g.name not in groups}
    return plan_graph(repairer, scores, Budget(width=width), PruneConfig(), whole)


def repeat_(model: nn.Module, groups: Iterable[Group]) -> None:
    """Let whatever makes or scales a unit of the upper half be what it is in the lower half."""
    tensors = named_tensors(model)
    with torch.no_grad():
        for group in groups:
            half = group.size // 2
            for member in group.members:
                if member.role != "reader" and tensors[member.key].dtype.is_floating_point:
                    rows = member.view(tensors[member.key])
                    rows[half : 2 * half] = rows[:half].clone()
