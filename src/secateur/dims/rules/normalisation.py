"""Operators that normalise: per channel from stored statistics, or across axes, where dropping changes the rest."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from secateur.dims.algebra import Dim, prod
from secateur.dims.rule import OP_RULES, Axes, Keep, Node

aten = torch.ops.aten


@OP_RULES.register(
    aten.native_batch_norm.default,
    aten._native_batch_norm_legit.default,
    aten._native_batch_norm_legit.no_stats,
    aten._native_batch_norm_legit_no_training.default,
    aten._batch_norm_with_update.default,
    aten._batch_norm_no_update.default,
    aten.cudnn_batch_norm.default,
    aten.miopen_batch_norm.default,
)
def batch_norm(op: Node, x: Axes, weight: Axes | None, bias: Axes | None, *rest: Any) -> None:
    """out[n, c, …] = (x[n, c, …] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]"""
    op.role(weight, "scale")
    op.role(bias, "shift")
    statistics = [t for t in rest if isinstance(t, Axes)]
    for t in statistics:
        op.role(t, "statistic")
    params = [t for t in (weight, bias, *statistics) if t is not None]
    for a, b in pairwise(params):
        op.equate(a[0], b[0])
    for t in params[-1:]:  # once: x may be a concatenation of many
        op.equate(t[0], x[1])
    if next((flag for flag in rest if isinstance(flag, bool)), False):  # over the batch: of weights that are its rows
        others = {axis: d for axis, d in enumerate(x) if axis != 1}
        op.renormalise(list(others.values()), partial(_first_across, dims=others))
    op.out(*x)
    for value in op.op.outputs[1:3]:
        if value is not None:
            op.out(*((x[1],) if value.shape == (x[1].size,) else (op.new(n, "saved statistics") for n in value.shape)))


def _across(
    keep: Keep, dims: dict[int, Dim], x: Tensor, run: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Run on the kept indices of some axes of x alone, then put the result back at full width, zero elsewhere."""
    small = x
    for axis, dim in dims.items():
        small = small.index_select(axis, keep(dim).to(x.device))
    out, *rest = run(small)
    for axis, dim in dims.items():
        shape = list(out.shape)
        shape[axis] = x.shape[axis]
        out = out.new_zeros(shape).index_copy_(axis, keep(dim).to(x.device), out)
    return (out, *rest)


def _layer_norm_reference(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keep: Keep, dims: dict[int, Dim]
) -> tuple[Tensor, ...]:
    x, _, *params = args
    index = [keep(d).to(x.device) for d in dims.values()]

    def run(small: Tensor) -> tuple[Tensor, ...]:
        kept_params = []
        for p in params:
            if isinstance(p, Tensor):
                for axis, i in enumerate(index):
                    p = p.index_select(axis, i)
            kept_params.append(p)
        out = target(small, [len(i) for i in index], *kept_params, **kwargs)
        return out if isinstance(out, tuple) else (out,)

    result = _across(keep, dims, x, run)
    return result if len(result) > 1 else result[0]  # type: ignore[return-value]


@OP_RULES.register(aten.native_layer_norm.default, aten._fused_rms_norm.default, aten.rms_norm.default)
def layer_norm(op: Node, x: Axes, shape: list[int], *params: Any) -> None:
    """out[…, c] = (x[…, c] - mean_c x) / sqrt(var_c x + eps) * weight[c] + bias[c]; RMS norm subtracts no mean"""
    first = len(x) - len(shape)
    for t, role in zip(params, ("scale", "shift"), strict=False):
        if isinstance(t, Axes):
            op.role(t, role)
            for a, b in zip(t.dims, x.dims[first:], strict=True):
                op.equate(a, b)
    dims = dict(enumerate(x.dims[first:], first))
    op.renormalise(list(dims.values()), partial(_layer_norm_reference, dims=dims))
    op.shape_decides()
    op.out(*x)
    for value in op.op.outputs[1:]:
        if value is not None:
            op.out(*(d if d.size == n else op.new(n) for d, n in zip(x, value.shape, strict=True)))


def _group_norm_reference(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keep: Keep, channels: Dim, group: Dim
) -> tuple[Tensor, ...]:
    x, weight, bias, n, _, spatial, _, *eps = args
    index = keep(channels).to(x.device)
    n_groups = len(keep(group))

    def run(small: Tensor) -> tuple[Tensor, ...]:
        w, b = (None if p is None else p.index_select(0, index) for p in (weight, bias))
        out: tuple[Tensor, ...] = target(small, w, b, n, len(index), spatial, n_groups, *eps, **kwargs)
        return out

    return _across(keep, {1: channels}, x, run)


@OP_RULES.register(aten.native_group_norm.default)
def group_norm(
    op: Node, x: Axes, weight: Axes | None, bias: Axes | None, n: int, c: int, spatial: int, group: int, eps: float
) -> None:
    """out[n, g c, …] = (x - mean_{c, …} x) / sqrt(var_{c, …} x + eps) * weight[g c] + bias[g c], per group g"""
    groups, within = op.new(group), op.new(c // group)
    op.equate(x[1], prod([groups, within]))
    for t, role in ((weight, "scale"), (bias, "shift")):
        if t is not None:
            op.role(t, role)
            op.equate(t[0], x[1])
    op.expect(4, x[1])
    op.expect(6, groups)
    op.renormalise([within], partial(_group_norm_reference, channels=x[1], group=groups))
    op.out(*x)
    for _ in op.op.outputs[1:]:
        op.out(x[0], groups)


def _first_across(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keep: Keep, dims: dict[int, Dim]
) -> tuple[Tensor, ...]:
    """The operator on the kept indices of some axes of its first argument."""
    x, *rest = args
    return _across(keep, dims, x, lambda small: target(small, *rest, **kwargs))


@OP_RULES.register(aten._weight_norm_interface.default)
def weight_norm(op: Node, v: Axes, g: Axes, dim: int = 0) -> None:
    """out[o, i, …] = g[o] * v[o, i, …] / sqrt(sum_{i, …} v[o, i, …]^2)"""
    op.equate(g[dim], v[dim])
    others = {axis: d for axis, d in enumerate(v) if axis != dim % len(v)}
    op.renormalise(list(others.values()), partial(_first_across, dims=others))
    op.role(g, "scale")
    op.out(*v)
    op.out(*g)


@OP_RULES.register(aten._softmax.default, aten._log_softmax.default, aten._safe_softmax.default)
def softmax(op: Node, x: Axes, dim: int, *args: Any, **kwargs: Any) -> None:
    """out[…, c] = exp(x[…, c]) / sum_c exp(x[…, c])"""
    op.read(x, dim, "lowest")
    op.out(*x)
