"""Operators that work on each element by itself: axes that broadcast against each other are equal."""

from __future__ import annotations

from typing import Any

import torch

from secateur.dims.algebra import ONE, Dim, cat
from secateur.dims.rule import OP_RULES, Axes, Node
from secateur.record import found_in

aten = torch.ops.aten

_ROLES = {aten.add.Tensor: "bias", aten.add_.Tensor: "bias", aten.mul.Tensor: "scale", aten.mul_.Tensor: "scale"}


@OP_RULES.register(
    aten.add.Tensor,
    aten.fill_.Scalar,
    aten.fill_.Tensor,
    aten.zero_.default,
    aten.copy_.default,
    aten.clone.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
    aten.lift_fresh.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.contiguous.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.empty_like.default,
    aten.dropout.default,
    aten.bernoulli_.float,
    aten.tril.default,
    aten.triu.default,
    aten.hardswish.default,
    aten.hardswish_.default,
    aten.mish_.default,
    aten.threshold_.default,
    aten.relu6_.default,
    aten.masked_fill.Scalar,
    aten.masked_fill.Tensor,
    aten.masked_fill_.Scalar,
    aten.masked_fill_.Tensor,
    aten._prelu_kernel.default,
    aten.rsub.Tensor,
    aten.rsub.Scalar,
    aten.floor_divide.default,
    aten.polar.default,
    aten.complex.default,
    aten.pow.Tensor_Scalar,
    aten._conj.default,
    aten.real.default,
    aten.imag.default,
)
def pointwise(op: Node, *args: Any, **kwargs: Any) -> None:
    """out[i, j, …] = f(x[i, j, …], y[i, j, …], …), where an axis of size 1 is equated with nothing"""
    tensors = found_in((*args, *kwargs.values()), Axes)
    rank = len(op.shape)
    dims: list[Dim] = [ONE] * rank
    for t in tensors:
        for axis, dim in enumerate(t.dims, rank - len(t)):
            if axis < 0 or dim.size == 1:
                continue
            if dims[axis].size == 1:
                dims[axis] = dim
            else:
                op.equate(dims[axis], dim)
    if op.op.target in _ROLES and any(not t.is_weight for t in tensors):
        for t in tensors:
            op.role(t, _ROLES[op.op.target])
    for _ in op.op.outputs:
        op.out(*dims)


@OP_RULES.register(
    aten.rand_like.default,
    aten.randn_like.default,
    aten.bernoulli.default,
    aten.bernoulli.p,
    aten.native_dropout.default,
)
def noise(op: Node, x: Axes, *args: Any, **kwargs: Any) -> None:
    """out has x's axes, but its values depend on how many there are; in a training forward nobody counts on them"""
    for dim in () if op.solution.is_training else x:
        op.freeze(dim, "random numbers are drawn per element")
    for _ in op.op.outputs:
        op.out(*x)


@OP_RULES.register(aten.glu.default)
def glu(op: Node, x: Axes, dim: int = -1) -> None:
    """out[i] = x[i] * sigmoid(x[i + n])"""
    a, b = op.new(x[dim].size // 2), op.new(x[dim].size // 2)
    op.equate(x[dim], cat([a, b]))
    op.equate(a, b)
    axes = list(x)
    axes[dim] = a
    op.out(*axes)
