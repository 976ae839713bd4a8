"""What every network of a zoo must give: half of every width goes, the proof holds, and the rest trains."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import secateur
from secateur.tensors import as_call, tensors_in


def prune_and_prove(model: nn.Module, inputs: Any, *, keeps: float = 0.6, trains: bool = True) -> None:
    """Prune to half of every width, prove the result and train it for a step; at most `keeps` of the weights stay.

    `keeps` is of all parameters, embeddings and classifier included. What is frozen must say where.
    """
    plan = secateur.plan(model, inputs, secateur.Budget(width=0.5), secateur.PruneConfig(criterion="random"))
    small = secateur.apply(model, plan, verify=False)
    report = secateur.verify(model, small, plan, inputs)
    assert report.is_ok, str(report)
    assert report.max_difference is not None
    assert all(reason for _, reason in plan.skipped)
    assert plan.cost_after.params <= keeps * plan.cost_before.params, list(plan.skipped)
    args, kwargs = as_call(inputs)
    outputs = tensors_in(small.train(trains)(*args, **kwargs))
    torch.stack([t.square().mean() for t in outputs if t.requires_grad]).sum().backward()
    gradients = [p.grad for p in small.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
