"""Quantizing a layer so that its outputs stay, not its weights: each column makes up for those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from secateur.coding.sweep import CodeColumn, sweep
from secateur.layers import Layer
from secateur.quantize.granularity import PerChannel, PerGroup
from secateur.quantize.quantizer import Quantizer

Fit = Callable[[Tensor, PerChannel], Quantizer]
"""Chooses the scales of a matrix, one for each row."""


def gptq(
    layer: Layer, hessian: Tensor, coding: Quantizer, fit: Fit, *, kept: Tensor | None = None, damping: float = 0.01
) -> Tensor:
    """The weight on the coding's levels for which sum_n |(W - W') x_n|^2 is small; see `sweep`.

    Scales per tensor and per channel are those that the coding has. Scales per group are chosen when the sweep reaches
    the group, for the weights as they are by then, and put into the coding. An output that rounding to nearest serves
    better is rounded, so that no output is worse off.

    Args:
        layer: its weight is not changed.
        hessian: (groups, in, in), sum_n x_n x_n^T in the layer's own order of columns.
        fit: chooses the scales of a group.
        kept: bool of the weight's shape; others are zero and stay zero.
        damping: of the Hessian.
    Returns:
        The weight, in its own shape and dtype.
    Raises:
        GroupError: see `sweep`.
    Source: Frantar et al., "GPTQ", ICLR 2023. Differs: columns are taken in their own order.
    """
    weight, granularity = layer.weight, coding.granularity
    order = _order(layer)
    hessian = hessian[..., order, :][..., order]

    def matrix(t: Tensor) -> Tensor:
        return layer.matrix(t)[..., order]

    def expanded(t: Tensor) -> Tensor:
        return matrix(t.expand(granularity.view(weight).shape).reshape(weight.shape)).to(hessian.dtype)

    there = None if kept is None else matrix(kept)
    fixed = {name: expanded(getattr(coding, name)) for name in coding.stored}
    values = {name: value.clone() for name, value in fixed.items()}

    def coded(rows: Tensor, values: Mapping[str, Tensor], columns: slice | int) -> Tensor:
        at = {name: value[..., columns] for name, value in values.items()}
        found = coding.levels(rows, at).detach() * at["scale"]
        return found if there is None else torch.where(there[..., columns], found, 0)

    def choose(block: Tensor, roots: Tensor, start: int) -> CodeColumn:
        if isinstance(granularity, PerGroup):
            part = fit(block.to(weight.dtype).flatten(0, 1), PerChannel())
            for name, value in values.items():
                value[..., start : start + block.shape[-1]] = getattr(part, name).reshape(*block.shape[:2], 1)
        return lambda column, i: coded(column, values, start + i)

    block = granularity.group_size if isinstance(granularity, PerGroup) else 128
    dense = matrix(weight).to(hessian.dtype)
    nearest, swept = coded(dense, fixed, slice(None)), sweep(dense, hessian, choose, block=block, damping=damping)
    is_better = _row_errors(dense - swept, hessian) < _row_errors(dense - nearest, hessian)
    if isinstance(granularity, PerGroup):
        for name, value in values.items():
            chosen = torch.where(is_better, value, fixed[name])[..., ::block]
            setattr(coding, name, chosen.to(weight.dtype).reshape(getattr(coding, name).shape))
    return layer.tensor(torch.where(is_better, swept, nearest)[..., order.argsort()].to(weight.dtype))


def _row_errors(lost: Tensor, hessian: Tensor) -> Tensor:
    """(…, out, 1)"""
    return ((lost @ hessian) * lost).sum(-1, keepdim=True)


def _order(layer: Layer) -> Tensor:
    """The layer's columns in the order of the weight's own memory: by channel, then by position of the window."""
    weight = layer.weight
    return layer.matrix(torch.arange(weight.numel(), device=weight.device).reshape(weight.shape))[0, 0].argsort()
