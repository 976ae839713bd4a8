"""Measuring what criteria need: each kind of statistic has one collector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from secateur.criteria.activations import collect_activity, collect_products, collect_ranks
from secateur.criteria.gates import collect_gates, collect_model_gates
from secateur.criteria.gradients import Loss, collect_gradients, collect_squared_gradients, cross_entropy
from secateur.criteria.kl import collect_divergences

if TYPE_CHECKING:
    from secateur.dims.groups import Group

LABELLED = frozenset({"gradients", "squared_gradients", "gates"})
"""Needs that take labels; the others take inputs alone."""

_OF_THE_LOSS = {"gradients": collect_gradients, "squared_gradients": collect_squared_gradients}
_OF_UNITS = {
    "activity": collect_activity,
    "ranks": collect_ranks,
    "products": collect_products,
    "divergences": collect_divergences,
}


def measure(
    model: nn.Module,
    groups: Iterable[Group],
    needs: Iterable[str],
    batches: Iterable[Any],
    *,
    loss: Loss = cross_entropy,
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Return the fields of `Context` that criteria need, by name, each from a pass over the data of its own.

    Args:
        groups: those that will be scored.
        needs: as `needs_of` gives them.
        batches: (inputs, labels) pairs or dicts; inputs alone where no need takes labels.
        loss: of the model's outputs and the labels, a mean over the batch.
        generator: for labels that are drawn.

    >>> from secateur.graph import trace
    >>> net, x = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(16, 3)
    >>> found = measure(net, trace(net, x).prunable, {"activity", "model_gates"}, [x])
    >>> {need: list(by_group) for need, by_group in found.items()}
    {'activity': ['0 features'], 'model_gates': ['0 features']}
    """
    needs, chosen = sorted(needs), list(groups)
    data = batches if len(needs) < 2 else list(batches)  # a generator is read only once
    found: dict[str, Any] = {}
    for need in needs:
        if need in _OF_THE_LOSS:
            found[need] = _OF_THE_LOSS[need](model, data, loss)
        elif need == "gates":
            found[need] = collect_gates(model, chosen, data, loss)
        elif need == "model_gates":
            found[need] = collect_model_gates(model, chosen, data, generator)
        else:
            found[need] = _OF_UNITS[need](model, chosen, data)
    return found
