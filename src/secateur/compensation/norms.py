"""Batch-norm statistics, measured on a network whose weights have changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from secateur.measure.modes import eval_mode
from secateur.tensors import Inputs, on_device, wide
from secateur.watching import watch


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
    norms = _norms(model)
    momenta = {norm: norm.momentum for norm in norms}
    with eval_mode(model):
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
    return len(norms)


def rebase_norms_(model: nn.Module, batches: Iterable[Inputs]) -> int:
    """Set batch norms' statistics to those of the data; scale and shift make up for it, so outputs stay what they are.

    gamma <- gamma * sqrt((var of the data + eps) / (var + eps))
    beta <- beta + gamma * (mean of the data - mean) / sqrt(var + eps), with gamma as it was

    Training normalises by the statistics of its batches. It goes on from what the network computes in eval mode only
    where the norms' own statistics are the data's; weights that were solved for again leave them apart.

    Args:
        batches: inputs without labels, of one size.
    Returns:
        How many norms were changed. Norms without scale and shift of their own, or below float32, stay as they are.

    >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> before = net(x)
    >>> rebase_norms_(net, [x]), net[0].running_mean.tolist(), torch.allclose(net(x), before)
    (1, [2.0], True)
    """
    n_users = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    norms = {str(i): norm for i, norm in enumerate(_norms(model)) if _is_own(norm, n_users)}
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # variance and mean of each call

    def see(name: str, x: Tensor, _: Tensor) -> None:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        seen.setdefault(name, []).append(torch.var_mean(wide(x), axes, correction=0))

    watch(model, norms, batches if norms else (), see)
    with torch.no_grad():
        for name, found in seen.items():
            variances, means = (torch.stack(part) for part in zip(*found, strict=True))
            _rebase_(norms[name], means.mean(0), variances.mean(0) + means.var(0, correction=0))
    return len(seen)


def _norms(model: nn.Module) -> list[_BatchNorm]:
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


def _is_own(norm: _BatchNorm, n_users: Counter[int]) -> bool:
    """True where scale and shift are parameters that nothing else holds, in float32 at least."""
    both = [norm._parameters.get(name) for name in ("weight", "bias")]
    return all(p is not None and n_users[id(p)] == 1 and wide(p).dtype == p.dtype for p in both)


def _rebase_(norm: _BatchNorm, mean: Tensor, var: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    before = (norm.running_var + norm.eps).sqrt()
    norm.bias.add_(norm.weight * (mean - norm.running_mean) / before)
    norm.weight.mul_((var + norm.eps).sqrt() / before)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(var)
