"""Batch-norm statistics, measured again on a network whose weights have changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.tensors import Inputs, on_device


def reestimate_norms_(model: nn.Module, batches: Iterable[Inputs]) -> int:
    """Set every batch norm's running mean and variance to the average of its batches' own. Weights stay as they are.

    Args:
        batches: inputs without labels, of at least two values per channel.
    Returns:
        How many norms were measured; 0 where the model has none.
    Source: Li et al., "EagleEye", ECCV 2020, section 3.3 (adaptive batch normalization).

    >>> net = nn.Sequential(nn.BatchNorm1d(1))
    >>> reestimate_norms_(net, [torch.tensor([[1.0], [3.0]])]), net[0].running_mean.tolist(), net.training
    (1, [2.0], True)
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    flags = {module: module.training for module in model.modules()}
    momenta = {norm: norm.momentum for norm in norms}
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over batches
        norm.train()
    try:
        with torch.no_grad():
            for inputs in batches if norms else ():
                args, kwargs = on_device(model, inputs)
                model(*args, **kwargs)
    finally:
        for norm, momentum in momenta.items():
            norm.momentum = momentum
        for module, training in flags.items():
            module.training = training
    return len(norms)
