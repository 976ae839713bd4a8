"""What every network of a zoo must give: half of every width goes, the proof holds, the rest trains.

And the original still computes what it did.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

import secateur
from secateur.surgery import copy_model
from secateur.tensors import as_call, tensors_in

_PLACE = re.compile(r"\w+\.\S+ in '.*' \(\S+\.py:\d+\)|at \S+\.py:\d+:|not used by this forward")


def prune_and_prove(model: nn.Module, inputs: Any, *, keeps: float = 0.6, trains: bool = True) -> None:
    """Prune to half of every width, prove the result and train it for a step; at most `keeps` of the weights stay.

    `keeps` is of all parameters, embeddings and classifier included. What is frozen must say where.
    """
    args, kwargs = as_call(inputs)
    before = tensors_in(copy_model(model).eval()(*args, **kwargs))
    plan = secateur.plan(model, inputs, secateur.Budget(width=0.5), secateur.PruneConfig(criterion="random"))
    small = secateur.apply(model, plan, verify=False)
    report = secateur.verify(model, small, plan, inputs)
    assert report.is_ok, str(report)
    assert report.max_difference is not None
    unplaced = [why for _, why in plan.skipped if not _PLACE.search(why)]
    assert not unplaced, unplaced
    assert plan.cost_after.params <= keeps * plan.cost_before.params, list(plan.skipped)
    for a, b in zip(before, tensors_in(model.eval()(*args, **kwargs)), strict=True):
        assert torch.equal(a, b)
    outputs = tensors_in(small.train(trains)(*args, **kwargs))
    torch.stack([t.square().mean() for t in outputs if t.requires_grad]).sum().backward()
    gradients = [p.grad for p in small.parameters() if p.grad is not None]
    assert gradients
    assert all(g.isfinite().all() for g in gradients)
