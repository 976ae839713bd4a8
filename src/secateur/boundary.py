"""Axes that the caller of a model sees: input features, the vocabulary, classes.

`plan` keeps them whole, because the caller must follow: she feeds fewer columns, numbers her tokens anew, or reads
fewer classes. Where she says that she will, the same equations tell what else goes along, and the result is a plan like
any other: it is applied, composed, saved and replayed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import nn

from secateur.allocate import Allocation
from secateur.dims.groups import Group
from secateur.errors import PlanError
from secateur.graph import Graph, trace
from secateur.numbers import known_bindings
from secateur.planning import make_plan
from secateur.plans import Plan
from secateur.tensors import Inputs

Kind = Literal["inputs", "vocabulary", "outputs"]


def plan_boundary(model: nn.Module, inputs: Inputs, kind: Kind, keep: Sequence[int]) -> Plan:
    """Plan to keep these input features ("inputs"), token numbers ("vocabulary") or classes ("outputs").

    The smaller model computes for the columns `keep` what the original does where all others are zero; for token i
    what the original does for token keep[i]; and of the outputs, those in `keep`. Tied weights shrink together, so a
    language model whose head is its embedding loses the same tokens at both ends. A number in the user's own modules
    that counts them is hers to change.

    Args:
        keep: sorted indices that stay.
    Raises:
        PlanError: the model has no such axis, or several, or the indices don't fit it.

    >>> import torch
    >>> plan = plan_boundary(nn.Linear(5, 2), torch.zeros(1, 5), "inputs", [0, 3])
    >>> plan.shape_before("weight"), plan.shape_after("weight"), plan.attributes[0].path
    ((2, 5), (2, 2), 'in_features')
    """
    graph = trace(model, inputs)
    group = _only(graph, kind)
    indices = tuple(map(int, keep))
    if not indices or indices != tuple(sorted({*indices})) or not 0 <= indices[0] <= indices[-1] < group.size:
        raise PlanError(
            f"'{group.name}' has {group.size} units. Keep at least one of them, as sorted numbers below that;"
            f" got {len(indices)} from {indices[:1]} to {indices[-1:]}."
        )
    group.leaf.frozen = None  # before anything is counted; the group keeps the name and kind that it had
    graph.groups = [replace(g, frozen_reason=None) if g is group else g for g in graph.groups]
    allocation = Allocation({group.name: indices}, achieved={})
    return make_plan(graph, known_bindings(model, graph), allocation, inputs, made_with={"boundary": kind})


def _only(graph: Graph, kind: Kind) -> Group:
    found = [g for g in graph.groups if g.kind == kind]
    if len(found) != 1:
        names = ", ".join(g.name for g in found) or "none"
        raise PlanError(
            f"The model has {len(found)} groups of {kind} ({names}), but one is needed to know what to cut."
        )
    return found[0]
