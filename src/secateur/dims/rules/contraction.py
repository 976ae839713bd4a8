"""Operators that multiply and sum: matrix products, convolutions, look-ups, attention."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch

from secateur.attention import ATTENTION
from secateur.dims.algebra import Dim, prod
from secateur.dims.rule import OP_RULES, Axes, Keep, Node
from secateur.errors import UnsupportedOpError

aten = torch.ops.aten


@OP_RULES.register(aten.mm.default)
def mm(op: Node, a: Axes, b: Axes) -> None:
    """out[n, o] = sum_k a[n, k] * b[k, o]"""
    op.contract(a, 1, b, 0)
    op.macs(a[0], a[1], b[1])
    op.out(a[0], b[1])


@OP_RULES.register(aten.addmm.default)
def addmm(op: Node, bias: Axes, a: Axes, b: Axes, **scale: Any) -> None:
    """out[n, o] = bias[o] + sum_k a[n, k] * b[k, o]"""
    mm(op, a, b)
    op.role(bias, "bias")
    for dim, out in zip(reversed(bias.dims), (b[1], a[0]), strict=False):
        if dim.size > 1:
            op.equate(dim, out)


@OP_RULES.register(aten.bmm.default)
def bmm(op: Node, a: Axes, b: Axes) -> None:
    """out[z, n, o] = sum_k a[z, n, k] * b[z, k, o]"""
    op.equate(a[0], b[0])
    op.contract(a, 2, b, 1)
    op.macs(a[0], a[1], a[2], b[2])
    op.out(a[0], a[1], b[2])


@OP_RULES.register(aten.baddbmm.default)
def baddbmm(op: Node, bias: Axes, a: Axes, b: Axes, **scale: Any) -> None:
    """out[z, n, o] = bias[z, n, o] + sum_k a[z, n, k] * b[z, k, o]"""
    bmm(op, a, b)
    for dim, out in zip(reversed(bias.dims), (b[2], a[1], a[0]), strict=False):
        if dim.size > 1:
            op.equate(dim, out)


@OP_RULES.register(aten.mv.default)
def mv(op: Node, a: Axes, b: Axes) -> None:
    """out[n] = sum_k a[n, k] * b[k]"""
    op.contract(a, 1, b, 0)
    op.macs(a[0], a[1])
    op.out(a[0])


@OP_RULES.register(aten.dot.default, aten.vdot.default)
def dot(op: Node, a: Axes, b: Axes) -> None:
    """out = sum_k a[k] * b[k]"""
    op.contract(a, 0, b, 0)
    op.macs(a[0])
    op.out()


@OP_RULES.register(aten.linear.default)
def linear(op: Node, x: Axes, weight: Axes, bias: Axes | None = None) -> None:
    """out[…, o] = bias[o] + sum_k x[…, k] * weight[o, k]"""
    op.contract(x, -1, weight, 1)
    if bias is not None:
        op.role(bias, "bias")
        op.equate(bias[0], weight[0])
    op.macs(*x, weight[0])
    op.out(*x.dims[:-1], weight[0])


@OP_RULES.register(aten.convolution.default)
def convolution(
    op: Node,
    x: Axes,
    weight: Axes,
    bias: Axes | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> None:
    """out[n, g o, p] = bias[g o] + sum_{i, q} x[n, g i, p + q] * weight[g o, i, q]; transposed: weight[g i, o, q]"""
    group = op.new(groups)
    op.expect(8, group)
    still = [i for i, n in enumerate(weight.shape[2:]) if n == 1 and x.shape[2 + i] == op.shape[2 + i]]
    still = [i for i in still if stride[i % len(stride)] == 1 and padding[i % len(padding)] == 0]
    convolve(op, x, weight, bias, group, transposed, still)


def convolve(
    op: Node,
    x: Axes,
    weight: Axes,
    bias: Axes | None,
    group: Dim,
    transposed: bool = False,
    still: Collection[int] = (),
) -> None:
    """What `convolution` says, for any operator that slides a kernel; `still` are spatial axes that it doesn't mix."""
    groups = group.size
    for dim in weight.dims[2:]:
        op.freeze(dim, "kernel")
    for i, dim in enumerate(x.dims[2:]):
        if i not in still:
            op.freeze(dim, "spatial")
    if transposed:
        op.contract(x, 1, weight, 0)
        op.equate(x[1], prod([group, op.new(x[1].size // groups)]))
        channels = prod([group, weight[1]])
        op.macs(x[0], x[1], weight[1], *x.dims[2:], *weight.dims[2:])
    else:
        channels = weight[0]
        if groups > 1:
            op.equate(channels, prod([group, op.new(channels.size // groups)]))
        op.reads_weight(x, 1)
        op.reads_weight(weight, 1)
        op.read(x, 1)
        op.equate(x[1], prod([group, weight[1]]))
    if bias is not None:
        op.role(bias, "bias")
        op.equate(bias[0], channels)
    spatial = [x[2 + i] if i in still else op.new(n, "spatial") for i, n in enumerate(op.shape[2:])]
    if not transposed:
        op.macs(x[0], weight[0], weight[1], *spatial, *weight.dims[2:])
    op.out(x[0], channels, *spatial)


@OP_RULES.register(aten.embedding.default)
def embedding(op: Node, weight: Axes, indices: Axes, *args: Any, **kwargs: Any) -> None:
    """out[…, c] = weight[indices[…], c]"""
    op.freeze(weight[0], "vocabulary")
    op.reads_weight(weight, 0)
    op.out(*indices, weight[1])


def _attention_reference(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], keep: Keep, head_dim: Dim) -> Any:
    """The default scale is 1/sqrt(head_dim), so a narrower head is scaled by its own width."""
    return target(*args, **{**kwargs, "scale": len(keep(head_dim)) ** -0.5})


def attention(op: Node, q: Axes, k: Axes, v: Axes, mask: Axes | None, scale: float | None) -> None:
    """out[b, h, l, e] = sum_s softmax_s(scale sum_d q[b, h, l, d] k[b, h, s, d] + mask[b, h, l, s]) v[b, h, s, e]"""
    if not len(q) == len(k) == len(v):
        raise UnsupportedOpError("attention on tensors of unlike ranks")
    outer = [_broadcast(op, q[i], k[i], v[i]) for i in range(len(q) - 3)]
    if len(q) > 2:
        outer.append(_heads(op, q[-3], k[-3], v[-3]))
    op.equate(k[-2], v[-2])
    op.freeze(k[-2], "softmax over the sequence")
    op.contract(q, -1, k, -1)
    if mask is not None:
        _broadcast(op, mask[-1], k[-2])
        for dim, out in zip(reversed(mask.dims[:-1]), (q[-2], *reversed(outer)), strict=False):
            _broadcast(op, dim, out)
    if scale is None:
        head_dim = q[-1]
        op.renormalise([head_dim], partial(_attention_reference, head_dim=head_dim))
    op.macs(*outer, q[-2], k[-2], q[-1])
    op.macs(*outer, q[-2], k[-2], v[-1])
    op.out(*outer, q[-2], v[-1])
    if len(op.op.outputs) > 1 and (logsumexp := op.op.outputs[1]) is not None:
        op.out(*_logsumexp(op, logsumexp.shape, (*outer, q[-2])))


def _broadcast(op: Node, *dims: Dim) -> Dim:
    """State that axes are the same, but for those of size 1."""
    wide = [d for d in dims if d.size > 1]
    for d in wide[1:]:
        op.equate(wide[0], d)
    return wide[0] if wide else dims[0]


def _heads(op: Node, q: Dim, k: Dim, v: Dim) -> Dim:
    """Query head (j, r) reads key head j."""
    kv = _broadcast(op, k, v)
    if q.size < kv.size:
        return kv
    op.equate(q, prod([kv, op.new(q.size // kv.size)]))
    return q


@OP_RULES.register(ATTENTION)
def any_attention(
    op: Node,
    q: Axes,
    k: Axes,
    v: Axes,
    mask: Axes | None = None,
    *args: Any,
    scale: float | None = None,
    **kwargs: Any,
) -> None:
    """`attention` by any kernel; those in one pass take values as wide as keys, so equal widths stay equal"""
    if q[-1].size == v[-1].size:
        op.tie([q[-1], v[-1]])
    attention(op, q, k, v, mask, scale)


def _logsumexp(op: Node, shape: tuple[int, ...], dims: tuple[Dim, ...]) -> list[Dim]:
    """Kernels pad and order this output as they like; where it is plain it follows the heads."""
    return [d if d.size == n else op.new(n, "statistics of attention") for d, n in zip(dims, shape, strict=False)] + [
        op.new(n, "statistics of attention") for n in shape[len(dims) :]
    ]


@OP_RULES.register(
    aten._scaled_dot_product_flash_attention_for_cpu.default,
)
def attention_cpu(
    op: Node,
    q: Axes,
    k: Axes,
    v: Axes,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Axes | None = None,
    scale: float | None = None,
) -> None:
    """`attention` in one pass, which takes values as wide as keys, as the CPU kernel takes its arguments"""
    op.tie([q[3], v[3]])
    attention(op, q, k, v, attn_mask, scale)


@OP_RULES.register(
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_flash_attention.quantized,
)
def attention_flash(op: Node, q: Axes, k: Axes, v: Axes, *args: Any, scale: float | None = None, **kwargs: Any) -> None:
    """`attention` in one pass, without a mask"""
    op.tie([q[3], v[3]])
    attention(op, q, k, v, None, scale)


@OP_RULES.register(
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
    aten._scaled_dot_product_attention_math.default,
)
def attention_biased(
    op: Node,
    q: Axes,
    k: Axes,
    v: Axes,
    attn_bias: Axes | None = None,
    *args: Any,
    scale: float | None = None,
    **kwargs: Any,
) -> None:
    """`attention`, where the mask is the fourth argument"""
    attention(op, q, k, v, attn_bias, scale)
