"""Operators that reduce axes, order them or accumulate along them."""

from __future__ import annotations

from typing import Any

import torch

from secateur.dims.algebra import ONE, Dim
from secateur.dims.rule import OP_RULES, Axes, Node

aten = torch.ops.aten

_HOW = {  # how a dropped index must look for the reduction to ignore it (see `Read`)
    "sum": "zero",
    "linalg_vector_norm": "zero",
    "norm": "zero",
    "any": "zero",
    "amax": "lowest",
    "max": "lowest",
    "logsumexp": "lowest",
    "amin": "highest",
    "min": "highest",
}


def _reduce(op: Node, x: Axes, dims: Any, keepdim: bool) -> None:
    """out[rest] = reduce over dims of x"""
    how = _HOW.get(op.op.target._schema.name.removeprefix("aten::"), "select")
    axes = (
        range(len(x))
        if dims is None or dims == []
        else [d % len(x) for d in ([dims] if isinstance(dims, int) else dims)]
    )
    for axis in axes:
        op.read(x, axis, how)
    out: list[Dim] = []
    for axis, dim in enumerate(x):
        if axis not in axes:
            out.append(dim)
        elif keepdim:
            out.append(ONE)
    for value in op.op.outputs:
        if value is not None:
            op.out(*out)


@OP_RULES.register(
    aten.mean.dim,
    aten.sum.dim_IntList,
    aten.amax.default,
    aten.amin.default,
    aten.any.dim,
    aten.all.dim,
    aten.logsumexp.default,
    aten.mean.default,
    aten.sum.default,
    aten.max.default,
    aten.min.default,
    aten.any.default,
    aten.all.default,
)
def reduce(op: Node, x: Axes, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> None:
    """out[n] = sum_c x[n, c], and so for mean, maximum, minimum"""
    _reduce(op, x, dim, keepdim)


@OP_RULES.register(aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction)
def variance(op: Node, x: Axes, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> None:
    """out[n] = var_c x[n, c], which has no value on `correction` elements or fewer"""
    for axis in range(len(x)) if dim is None else [dim] if isinstance(dim, int) else dim:
        op.needs(x[axis], 1 + int(1 if correction is None else correction))
    _reduce(op, x, dim, keepdim)


@OP_RULES.register(aten.linalg_vector_norm.default, aten.norm.ScalarOpt_dim)
def vector_norm(op: Node, x: Axes, order: Any = 2, dim: Any = None, keepdim: bool = False, **kwargs: Any) -> None:
    """out[n] = (sum_c |x[n, c]|^p)^(1/p)"""
    if order is not None and order <= 0:
        for d in x:
            op.freeze(d, f"a norm of order {order} counts its indices")
    _reduce(op, x, dim, keepdim)


@OP_RULES.register(aten.argmax.default, aten.argmin.default)
def argument(op: Node, x: Axes, dim: int | None = None, keepdim: bool = False) -> None:
    """out[n] = the index c of the largest x[n, c]"""
    if dim is None:
        select_one(op, x, dim, keepdim)
        return
    op.read(x, dim, "lowest" if op.op.target is aten.argmax.default else "highest")
    op.gives_indices(0, x[dim])
    op.out(*(ONE if i == dim % len(x) else d for i, d in enumerate(x) if keepdim or i != dim % len(x)))


@OP_RULES.register(aten.topk.default)
def topk(op: Node, x: Axes, k: int, dim: int = -1, largest: bool = True, is_sorted: bool = True) -> None:
    """values[n, j], indices[n, j] = the j-th largest x[n, c] and its c, so that experts are chosen among those left"""
    op.read(x, dim, "lowest" if largest else "highest")
    op.needs(x[dim], k)
    dims = list(x)
    dims[dim] = op.new(k, "ordered")
    op.out(*dims)
    op.out(*dims)
    op.gives_indices(1, x[dim])


@OP_RULES.register(
    aten.max.dim,
    aten.min.dim,
    aten.prod.dim_int,
    aten.median.dim,
    aten.mode.default,
)
def select_one(op: Node, x: Axes, dim: int | None = None, keepdim: bool = False, **kwargs: Any) -> None:
    """out[n] = one element along an axis, which its position names"""
    axes = range(len(x)) if dim is None else [dim % len(x)]
    for axis in axes:
        op.freeze(x[axis], "indices along the axis are results")
    out = [ONE if i in axes else d for i, d in enumerate(x) if keepdim or i not in axes]
    for _ in op.op.outputs:
        op.out(*out)


@OP_RULES.register(
    aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default, aten.flip.default, aten.cummax.default
)
def along(op: Node, x: Axes, dim: Any, *args: Any, **kwargs: Any) -> None:
    """out[i] depends on the order along the axis"""
    for axis in [dim] if isinstance(dim, int) else dim:
        op.freeze(x[axis], "order along the axis matters")
    for _ in op.op.outputs:
        op.out(*x)


@OP_RULES.register(aten.roll.default)
def roll(op: Node, x: Axes, shifts: list[int], dims: Any = ()) -> None:
    """out[i] = x[i - shift mod n]"""
    for axis in dims or range(len(x)):
        op.freeze(x[axis], "rolled")
    op.out(*x)


@OP_RULES.register(aten.sort.default, aten.sort.stable, aten.argsort.default)
def ordered(op: Node, x: Axes, *args: Any, **kwargs: Any) -> None:
    """out[…, k] = the k-th largest along an axis"""
    dim = kwargs.get("dim", args[0] if args else -1)
    axis = (dim if isinstance(dim, int) and not isinstance(dim, bool) else -1) % len(x)
    op.freeze(x[axis], "ordered")
    dims = [op.new(op.shape[i], "ordered") if i == axis else d for i, d in enumerate(x)]
    for _ in op.op.outputs:
        op.out(*dims)
