"""Operators that treat batch and channels alike and mix only space: pooling, resampling, padding by reflection."""

from __future__ import annotations

import re
from typing import Any

import torch

from secateur.dims.algebra import prod
from secateur.dims.rule import OP_RULES, Axes, Node

aten = torch.ops.aten


@OP_RULES.register(
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten.adaptive_avg_pool1d.default,
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool3d.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest3d.default,
    aten._upsample_nearest_exact2d.default,
    aten.upsample_linear1d.default,
    aten.upsample_bilinear2d.default,
    aten._upsample_bilinear2d_aa.default,
    aten.upsample_bicubic2d.default,
    aten._upsample_bicubic2d_aa.default,
    aten.upsample_trilinear3d.default,
    aten.reflection_pad1d.default,
    aten.reflection_pad2d.default,
    aten.reflection_pad3d.default,
    aten.replication_pad1d.default,
    aten.replication_pad2d.default,
    aten.replication_pad3d.default,
)
def pool(op: Node, x: Axes, *args: Any, **kwargs: Any) -> None:
    """out[n, c, p] = f_q(x[n, c, q]) over the last one, two or three axes, as the operator's name says"""
    match = re.search(r"([123])d", op.op.target._schema.name)
    assert match is not None
    lead = len(x) - int(match[1])
    for dim in x.dims[lead:]:
        op.freeze(dim, "spatial")
    spatial = [op.new(n, "spatial") for n in op.shape[lead:]]
    for _ in op.op.outputs:
        op.out(*x.dims[:lead], *spatial)


@OP_RULES.register(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sampler(op: Node, x: Axes, grid: Axes, *args: Any) -> None:
    """out[n, c, p] = x[n, c, grid[n, p]], interpolated"""
    for dim in (*x.dims[2:], grid[-1]):
        op.freeze(dim, "sampled at coordinates")
    op.equate(x[0], grid[0])
    op.out(x[0], x[1], *grid.dims[1:-1])


@OP_RULES.register(aten.im2col.default)
def im2col(op: Node, x: Axes, kernel: list[int], *args: Any) -> None:
    """out[n, (c k), l] = x[n, c, l + k]"""
    for dim in x.dims[-2:]:
        op.freeze(dim, "spatial")
    window = op.new(op.shape[-2] // x[-3].size, "kernel")
    op.out(*x.dims[:-3], prod([x[-3], window]), op.new(op.shape[-1], "spatial"))


@OP_RULES.register(aten.col2im.default)
def col2im(op: Node, x: Axes, size: list[int], kernel: list[int], *args: Any) -> None:
    """out[n, c, l + k] = sum over l, k of x[n, (c k), l]"""
    channels = op.new(op.shape[-3])
    op.equate(x[-2], prod([channels, op.new(x[-2].size // channels.size, "kernel")]))
    op.freeze(x[-1], "spatial")
    op.out(*x.dims[:-2], channels, *(op.new(n, "spatial") for n in op.shape[-2:]))
