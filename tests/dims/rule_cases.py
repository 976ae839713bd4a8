"""A call of every registered operator: the tensors it gets, and how its numbers follow when those get smaller.

`T(4, 6)` is a float tensor whose axes may shrink; `T(4, 6, whole=(0,))` one whose first axis may not, as a batch.
`resize` rewrites the arguments of the smaller call, given them and the predicted output shapes.
`run` stands in for a kernel that the CPU does not have, with the same arguments.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F

from secateur.attention import ATTENTION

aten = torch.ops.aten

Shapes = Sequence[tuple[int, ...]]


class T:
    """A tensor to make: normal floats, integers below `high`, or booleans."""

    def __init__(self, *shape: int, whole: tuple[int, ...] = (), high: int = 0, dtype: torch.dtype = torch.float64):
        self.shape = shape
        self.whole = tuple(range(len(shape))) if high or dtype == torch.bool else whole
        self.high = high
        self.dtype = dtype

    def make(self, generator: torch.Generator) -> torch.Tensor:
        if self.dtype == torch.bool:
            return torch.rand(self.shape, generator=generator) > 0.5
        if self.high:
            return torch.randint(0, self.high, self.shape, generator=generator)
        if self.dtype.is_complex:
            return torch.complex(*(torch.randn(self.shape, generator=generator).double() for _ in range(2)))
        return torch.rand(self.shape, generator=generator, dtype=self.dtype) * 0.9 + 0.05


@dataclass(frozen=True)
class Case:
    op: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    resize: Callable[[tuple[Any, ...], Shapes], tuple[Any, ...]] | None = None
    run: Callable[..., Any] | None = None
    is_free: bool = True  # some axis of some tensor may shrink
    is_random: bool = False  # values can't be compared
    fails: str = ""  # an open bug of the rule, so that the case must fail
    fails_cut: str = ""  # one that shows on cut inputs only

    def __str__(self) -> str:
        shapes = "x".join(str(list(a.shape)) for a in self.args if isinstance(a, T)).replace(" ", "")
        return f"{str(self.op).removeprefix('aten.')}-{shapes}"


CASES: list[Case] = []


def case(op: torch._ops.OpOverload, *args: Any, **options: Any) -> None:
    mine = {k: options.pop(k) for k in ("resize", "run", "is_free", "is_random", "fails", "fails_cut") if k in options}
    CASES.append(Case(op, args, options, **mine))


def each(ops: Sequence[torch._ops.OpOverload], *args: Any, **options: Any) -> None:
    for op in ops:
        case(op, *args, **options)


# contraction
case(aten.mm.default, T(4, 6), T(6, 5))
case(aten.addmm.default, T(5), T(4, 6), T(6, 5))
case(aten.addmm.default, T(4, 5), T(4, 6), T(6, 5), beta=2, alpha=3)
case(aten.bmm.default, T(3, 4, 6), T(3, 6, 5))
case(aten.baddbmm.default, T(3, 4, 5), T(3, 4, 6), T(3, 6, 5))
case(aten.baddbmm.default, T(3, 1, 5), T(3, 4, 6), T(3, 6, 5))
case(aten.mv.default, T(4, 6), T(6))
each([aten.dot.default, aten.vdot.default], T(6), T(6))
case(aten.linear.default, T(2, 3, 6), T(5, 6), T(5))
case(aten.linear.default, T(6), T(5, 6))
for groups in (1, 2, 6):
    c = aten.convolution.default
    case(c, T(2, 6, 5, 5), T(12, 6 // groups, 3, 3), T(12), [1, 2], [1, 1], [1, 1], False, [0, 0], groups)
    case(c, T(2, 6, 5, 5), T(6, 12 // groups, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [1, 1], groups)
    case(c, T(2, 6, 7), T(12, 6 // groups, 3), T(12), [1], [2], [2], False, [0], groups)
case(aten.convolution.default, T(2, 4, 5, 5, 5), T(6, 4, 3, 3, 3), None, [1] * 3, [0] * 3, [1] * 3, False, [0] * 3, 1)
_point = [1], [0], [1], False, [0], 1  # a kernel of one element leaves positions alone
case(aten.convolution.default, T(2, 6, 7), T(12, 6, 1), T(12), *_point)
case(aten.convolution.default, T(2, 6, 7), T(6, 12, 1), T(12), [1], [0], [1], True, [0], 1)
case(aten.convolution.default, T(2, 6, 7, 5), T(12, 6, 1, 3), None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
case(aten.embedding.default, T(7, 6), T(2, 3, high=7))


def _attend(q: Any, k: Any, v: Any, mask: Any = None, scale: float | None = None) -> Any:
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out, q.new_zeros(q.shape[:3])


def _attend_biased(q: Any, k: Any, v: Any, mask: Any = None, *rest: Any, scale: float | None = None, **kw: Any) -> Any:
    return _attend(q, k, v, mask, scale)


def _attend_plain(q: Any, k: Any, v: Any, *rest: Any, scale: float | None = None, **kw: Any) -> Any:
    return _attend(q, k, v, None, scale)


_qkv = T(2, 4, 5, 6, whole=(0, 2)), T(2, 4, 3, 6, whole=(0, 2)), T(2, 4, 3, 8, whole=(0, 2))
_shared = _qkv[0], T(2, 2, 3, 6, whole=(0, 2)), T(2, 2, 3, 8, whole=(0, 2))
_mask = T(2, 4, 5, 3, whole=(0, 2, 3))
_narrow = T(2, 4, 3, 6, whole=(0, 2))
for qkv in (_qkv, _shared):
    for scale in ({}, {"scale": 0.3}):
        case(aten._scaled_dot_product_attention_math.default, *qkv, enable_gqa=True, run=_attend_biased, **scale)
        # kernels of other devices, or of narrower use: the plain formula stands in
        case(aten._scaled_dot_product_efficient_attention.default, *qkv, None, False, run=_attend_biased, **scale)
        case(aten._scaled_dot_product_cudnn_attention.default, *qkv, None, False, run=_attend_biased, **scale)
        case(aten._scaled_dot_product_fused_attention_overrideable.default, *qkv, run=_attend_biased, **scale)
        flash = *qkv[:2], qkv[1]  # heads of q, k and v are of one size
        case(aten._scaled_dot_product_flash_attention.default, *flash, run=_attend_plain, **scale)
        case(aten._scaled_dot_product_flash_attention.quantized, *flash, run=_attend_plain, **scale)
case(aten._scaled_dot_product_efficient_attention.default, *_qkv, _mask, False, run=_attend_biased, scale=0.3)
_any = ATTENTION
case(_any, *_qkv, scale=0.3)
case(_any, *_qkv, _mask)
case(_any, *_shared, None, 0.0, False, enable_gqa=True)
case(_any, _qkv[0], _narrow, _narrow, None, 0.0, True)
case(_any, T(2, 5, 6, whole=(1,)), T(2, 3, 6, whole=(1,)), T(2, 3, 8, whole=(1,)))
case(_any, T(5, 6, whole=(0,)), T(3, 6, whole=(0,)), T(3, 8, whole=(0,)))
case(_any, _qkv[0], T(2, 1, 3, 6, whole=(0, 2)), T(1, 1, 3, 8, whole=(2,)), T(1, 3, whole=(1,)), scale=0.3)
case(_any, T(2, 1, 5, 6, whole=(0, 2)), *_qkv[1:])
_cpu = aten._scaled_dot_product_flash_attention_for_cpu.default
for options in ({}, {"scale": 0.5}, {"attn_mask": T(2, 1, 5, 3, whole=(0, 2, 3)), "scale": 0.5}):
    case(_cpu, _qkv[0], _narrow, _narrow, **options)

# indexing
each([aten.index.Tensor, aten._unsafe_index.Tensor], T(4, 6, 5), [None, T(3, high=6)])
each([aten.index.Tensor, aten._unsafe_index.Tensor], T(4, 6, 5), [T(2, 3, high=4), None, T(3, high=5)])
case(aten.index.Tensor, T(4, 6, 5), [T(3, high=4), T(3, high=6)])
case(aten.index_select.default, T(4, 6), 1, T(3, high=6))
case(aten.gather.default, T(4, 6), 1, T(4, 3, high=6), is_free=False)
each([aten.scatter.src, aten.scatter_.src], T(4, 6), 1, T(4, 6, high=6), T(4, 6), is_free=False)
each([aten.scatter.value, aten.scatter_.value], T(4, 6), 1, T(4, 3, high=6), 2.0, is_free=False)
each([aten.scatter_add.default, aten.scatter_add_.default], T(4, 6), 1, T(4, 3, high=6), T(4, 3), is_free=False)
each([aten.index_put.default, aten.index_put_.default], T(4, 6), [T(3, high=4)], T(3, 6))
each([aten.index_put.default, aten.index_put_.default], T(4, 6), [T(3, high=4)], T(6))
case(aten._index_put_impl_.default, T(4, 6), [T(3, high=4)], T(3, 6))
each(
    [aten.index_add.default, aten.index_add_.default, aten.index_copy.default, aten.index_copy_.default],
    *(T(4, 6), 0, T(3, high=4), T(3, 6)),
    run=None,
    is_random=True,  # a repeated index may be written in any order
)


def _to_shape(args: tuple[Any, ...], shapes: Shapes) -> tuple[Any, ...]:
    return (list(shapes[0]), *args[1:])


def _to_shape_after(args: tuple[Any, ...], shapes: Shapes) -> tuple[Any, ...]:
    return (args[0], list(shapes[0]), *args[2:])


each([aten.zeros.default, aten.ones.default], [4, 6], resize=_to_shape)
case(aten.full.default, [4, 6], 3.0, resize=_to_shape)
each([aten.new_zeros.default, aten.new_ones.default], T(2), [4, 6], resize=_to_shape_after)
case(aten.new_full.default, T(2), [4, 6], 3.0, resize=_to_shape_after)
case(aten.scalar_tensor.default, 3.0, is_free=False)
case(aten.empty.memory_format, [4, 6], resize=_to_shape, is_random=True)
case(aten.new_empty.default, T(2), [4, 6], resize=_to_shape_after, is_random=True)
case(aten.empty_strided.default, [4, 6], [6, 1], resize=_to_shape, is_random=True)
case(aten.new_empty_strided.default, T(2), [4, 6], [6, 1], resize=_to_shape_after, is_random=True)
case(aten.arange.default, 6, is_free=False)
case(aten.arange.start, 2, 6, is_free=False)
case(aten.arange.start_step, 2, 6, 2, is_free=False)
case(aten.linspace.default, 0, 1, 6, is_free=False)
case(aten.eye.default, 6, is_free=False)
case(aten.eye.m, 6, 4, is_free=False)
each([aten.rand.default, aten.randn.default], [4, 6], is_free=False, is_random=True)
case(aten.randint.default, 9, [4, 6], is_free=False, is_random=True)
case(aten.randint.low, 2, 9, [4, 6], is_free=False, is_random=True)
case(aten.randperm.default, 6, is_free=False, is_random=True)
each([aten.tril_indices.default, aten.triu_indices.default], 3, 4, is_free=False)
each([aten.bartlett_window.default, aten.hann_window.default], 6, is_free=False)
case(aten.one_hot.default, T(3, high=5), 5, is_free=False)

# normalisation
_stats = T(6), T(6), T(6), T(6)
_bn = (T(2, 6, 3, whole=(0, 2)), *_stats)


def _batch_norm(x: Any, w: Any, b: Any, mean: Any, var: Any, *rest: Any) -> Any:
    return torch.native_batch_norm(x, w, b, mean, var, False, 0.1, 1e-5)


for training in (False, True):
    case(aten.native_batch_norm.default, *_bn, training, 0.1, 1e-5)
    case(aten._native_batch_norm_legit.default, *_bn, training, 0.1, 1e-5)
case(aten.native_batch_norm.default, _bn[0], None, None, T(6), T(6), False, 0.1, 1e-5)
case(aten._native_batch_norm_legit.no_stats, *_bn[:3], True, 0.1, 1e-5)
case(aten._native_batch_norm_legit_no_training.default, *_bn, 0.1, 1e-5)
case(aten._batch_norm_with_update.default, *_bn, 0.1, 1e-5)
case(aten._batch_norm_no_update.default, *_bn, 0.1, 1e-5)
each([aten.cudnn_batch_norm.default, aten.miopen_batch_norm.default], *_bn, False, 0.1, 1e-5, run=_batch_norm)


def _normalised_shape(args: tuple[Any, ...], shapes: Shapes) -> tuple[Any, ...]:
    return (args[0], list(shapes[0][-len(args[1]) :]), *args[2:])


case(aten.native_layer_norm.default, T(3, 4, 6), [6], T(6), T(6), 1e-5, resize=_normalised_shape)
case(aten.native_layer_norm.default, T(3, 4, 6), [4, 6], T(4, 6), None, 1e-5, resize=_normalised_shape)
case(aten.native_layer_norm.default, T(3, 6), [6], None, None, 1e-5, resize=_normalised_shape)
each([aten._fused_rms_norm.default, aten.rms_norm.default], T(3, 6), [6], T(6), 1e-5, resize=_normalised_shape)
for groups in (1, 2, 6):
    x = T(2, 6, 4, whole=(0, 2))
    case(aten.native_group_norm.default, x, T(6), T(6), 2, 6, 4, groups, 1e-5)
each([aten._softmax.default, aten._log_softmax.default], T(3, 6), 1, False)
each([aten._softmax.default, aten._log_softmax.default], T(3, 6, 4), -2, False)
case(aten._safe_softmax.default, T(3, 6), -1)

case(aten._weight_norm_interface.default, T(4, 6, 3), T(4, 1, 1), 0)
case(aten._weight_norm_interface.default, T(4, 6), T(1, 6), 1)

# pointwise
case(aten.add.Tensor, T(4, 6), T(6))
case(aten.add.Tensor, T(4, 1, 6), T(5, 1), alpha=2)
case(aten.fill_.Scalar, T(4, 6), 2.0)
case(aten.fill_.Tensor, T(4, 6), T())
case(aten.copy_.default, T(4, 6), T(6))
each(
    [
        *(aten.zero_.default, aten.clone.default, aten.detach.default, aten.detach_.default, aten.alias.default),
        *(aten.lift_fresh.default, aten.lift_fresh_copy.default, aten.contiguous.default, aten.zeros_like.default),
        *(aten.ones_like.default, aten.hardswish.default, aten.hardswish_.default, aten.mish_.default),
        *(aten.relu6_.default, aten.real.default, aten._to_copy.default),
    ],
    T(4, 6),
)
case(aten.full_like.default, T(4, 6), 2.0)
case(aten.empty_like.default, T(4, 6), is_random=True)
case(aten.dropout.default, T(4, 6), 0.5, False)
case(aten.bernoulli_.float, T(4, 6), 0.5, is_random=True)
each([aten.tril.default, aten.triu.default], T(2, 4, 6, whole=(1, 2)))
case(aten.threshold_.default, T(4, 6), 0.5, 0.1)
each([aten.masked_fill.Scalar, aten.masked_fill_.Scalar], T(4, 6), T(4, 1, dtype=torch.bool), -1.0)
each([aten.masked_fill.Tensor, aten.masked_fill_.Tensor], T(4, 6), T(4, 1, dtype=torch.bool), T())
case(aten._prelu_kernel.default, T(2, 6, 3), T(1, 6, 1))
case(aten.rsub.Tensor, T(4, 6), T(6))
case(aten.rsub.Scalar, T(4, 6), 2.0)
case(aten.floor_divide.default, T(4, 6), T(6))
each([aten.polar.default, aten.complex.default], T(4, 6), T(4, 6))
case(aten.pow.Tensor_Scalar, T(4, 6), 3)
each([aten._conj.default, aten.imag.default], T(4, 6, dtype=torch.complex128))
each([aten.rand_like.default, aten.randn_like.default], T(4, 6), is_free=False, is_random=True)
case(aten.bernoulli.default, T(4, 6, dtype=torch.float32), is_free=False, is_random=True)
case(aten.bernoulli.p, T(4, 6), 0.5, is_free=False, is_random=True)
case(aten.native_dropout.default, T(4, 6), 0.5, True, is_free=False, is_random=True)
case(aten.glu.default, T(4, 6), 1)
case(aten.glu.default, T(2, 6, 3), -2)

# reduction
_over_axes = [aten.mean.dim, aten.sum.dim_IntList, aten.amax.default, aten.amin.default, aten.logsumexp.default]
each(_over_axes, T(3, 4, 6), [1, -1])
each(_over_axes, T(3, 6), [1], True)
each([aten.any.dim, aten.all.dim], T(3, 6, dtype=torch.bool), 1, is_free=False)
each([aten.any.dim, aten.all.dim], T(3, 6), 1)
each([aten.mean.default, aten.sum.default, aten.max.default, aten.min.default], T(3, 6))
each([aten.any.default, aten.all.default], T(3, 6))
_variances = [aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction]
each(_variances, T(3, 6, 4), [1, 2], correction=0)
each(_variances, T(3, 12), [1], correction=0, keepdim=True)
case(aten.linalg_vector_norm.default, T(3, 6), 2, [1], True)
case(aten.linalg_vector_norm.default, T(3, 6), 1)
case(aten.norm.ScalarOpt_dim, T(3, 6), 2, [1])
each([aten.argmax.default, aten.argmin.default], T(3, 6), 1)
each([aten.argmax.default, aten.argmin.default], T(3, 6), is_free=False)
each([aten.max.dim, aten.min.dim, aten.median.dim, aten.mode.default], T(3, 6), 1)
case(aten.prod.dim_int, T(3, 6), 1)
each([aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default, aten.cummax.default], T(3, 6), 1)
case(aten.flip.default, T(3, 4, 6), [1, 2])
case(aten.roll.default, T(3, 4, 6), [2], [1])
case(aten.roll.default, T(3, 4), [2], is_free=False)
case(aten.topk.default, T(3, 6), 2, 1)
case(aten.topk.default, T(6, 3), 2, 0)
each([aten.sort.default, aten.argsort.default], T(3, 6), 0)
case(aten.sort.stable, T(3, 6), stable=True, dim=0)

# shape
_views = [aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_copy.default]
each(_views, T(4, 6), [2, 2, 6], resize=_to_shape_after)
each(_views, T(2, 6, 1, 4), [12, 4], resize=_to_shape_after)
each(_views, T(2, 3, 4), [3, 8], resize=_to_shape_after, is_free=False)  # 2 x 3 x 4 as 3 x 8: no alignment
case(aten._reshape_alias.default, T(4, 6), [24], [1], resize=lambda a, s: (a[0], list(s[0]), [1]))
case(aten.permute.default, T(3, 4, 6), [2, 0, 1])
each([aten.t.default, aten.numpy_T.default], T(3, 4))
each([aten.transpose.int, aten.swapaxes.default], T(3, 4, 6), 0, -1)
for axis in (-1, 1):
    case(aten.unsqueeze.default, T(3, 4), axis)
    case(aten.unsqueeze_.default, T(3, 4), axis)
case(aten.squeeze.default, T(3, 1, 4, whole=(0, 2)), is_free=False)
case(aten.squeeze.dim, T(3, 1, 4), -2)
case(aten.squeeze_.dim, T(3, 1, 4), -2)
case(aten.squeeze_.dims, T(3, 1, 4), [-2])
case(aten.squeeze_.default, T(3, 1, 4, whole=(0, 2)), is_free=False)
case(aten.t_.default, T(3, 4))
case(aten.transpose_.default, T(3, 4, 6), 0, -1)
case(aten.squeeze.dims, T(3, 1, 1), [1, 2])
each([aten.expand.default, aten.expand_copy.default], T(4, 1, 6), [3, 4, 5, 6], resize=_to_shape_after)
case(
    aten.repeat.default,
    *(T(4, 6), [2, 3, 1]),
    resize=lambda a, s: (a[0], [s[0][0], s[0][1] // a[0].shape[0], s[0][2] // a[0].shape[1]]),
)
case(
    aten.repeat_interleave.self_int,
    *(T(4, 6), 3, 1),
    resize=lambda a, s: (a[0], s[0][1] // a[0].shape[1], 1),
)
case(aten.repeat_interleave.self_int, T(4, 6), 3, resize=lambda a, s: (a[0], s[0][0] // a[0].numel()))
case(aten.select.int, T(4, 6), 1, 2)
each([aten.slice.Tensor, aten.slice_copy.Tensor], T(4, 6), 1, 0, 4, resize=lambda a, s: (a[0], 1, 0, s[0][1]))
each(
    [aten.slice.Tensor, aten.slice_copy.Tensor],
    *(T(4, 6), 1, 2, 5),
    resize=lambda a, s: (a[0], 1, a[2], a[2] + s[0][1]),
)
each([aten.slice.Tensor, aten.slice_copy.Tensor], T(4, 6), 1, -2, 2**63 - 1, resize=lambda a, s: (a[0], 1, -s[0][1]))
case(aten.slice.Tensor, T(4, 6), 1, 1, 2**63 - 1, 2)
case(aten.slice.Tensor, T(4, 6), 1, 1, 4, 2)
each([aten.split.Tensor, aten.unsafe_split.Tensor], T(4, 6), 3, 1)
each([aten.split.Tensor, aten.unsafe_split.Tensor], T(4, 6), 4, 1)
each([aten.split.Tensor, aten.unsafe_split.Tensor], T(4, 6), 6, -1)
each(
    [aten.split_with_sizes.default, aten.split_with_sizes_copy.default, aten.unsafe_split_with_sizes.default],
    *(T(4, 6), [1, 3, 0, 2], 1),
    resize=lambda a, s: (a[0], [shape[1] for shape in s], 1),
)
case(aten.unbind.int, T(4, 6), 1)
case(aten.cat.default, [T(4, 6), T(4, 3), T(0)], 1)
case(aten.cat.default, [T(4, 6), T(5, 6)], -2)
case(aten.stack.default, [T(4, 6), T(4, 6), T(4, 6)], -1)
case(aten.stack.default, [T(4, 6)], 0)


def _margins(args: tuple[Any, ...], shapes: Shapes) -> tuple[Any, ...]:
    """The margins that may shrink: of the last axis the right one, of the one before the left one."""
    x, pad, *value = args
    *_, rows, columns = shapes[0]
    left, _, *above = pad
    vertical = [rows - x.shape[-2], 0] if above else []
    return x, [left, columns - x.shape[-1] - left, *vertical], *value


case(aten.constant_pad_nd.default, T(3, 4, 6), [1, 2, 3, 0], 0.5, resize=_margins)
case(aten.constant_pad_nd.default, T(3, 4, 6), [-1, 2], resize=_margins)
_plain = {"resize": lambda a, s: (a[0], s[0], [s[0][1], 1])}
each([aten.as_strided.default, aten.as_strided_.default], T(4, 6), [4, 6], [6, 1], **_plain)
case(aten.as_strided.default, T(4, 6), [2, 2], [6, 1], 1, is_free=False)
case(aten.as_strided_.default, T(4, 6), [2, 2], [6, 1], 1, is_free=False)
case(aten.pixel_shuffle.default, T(2, 12, 3, 4), 2)
case(aten.pixel_unshuffle.default, T(2, 3, 4, 6, whole=(2, 3)), 2)
each([aten.channel_shuffle.default, aten.native_channel_shuffle.default], T(2, 6, 3, 3), 2)
case(aten.view_as_real.default, T(4, 6, dtype=torch.complex128))
case(aten.view_as_complex.default, T(4, 6, 2))
case(aten.diagonal.default, T(3, 4, 5), 1, 0, 2)
case(aten.unfold.default, T(3, 8, 2), 1, 3, 2)

# spatial
for n, size in ((1, [5]), (2, [5, 6]), (3, [5, 6, 4])):
    x = T(2, 4, *size)
    each([getattr(aten, f"avg_pool{n}d").default], x, [2] * n)
    each([getattr(aten, "adaptive_avg_pool1d" if n == 1 else f"_adaptive_avg_pool{n}d").default], x, [2] * n)
    each([getattr(aten, f"upsample_nearest{n}d").default], x, [7] * n)
    each([getattr(aten, f"{kind}_pad{n}d").default for kind in ("reflection", "replication")], x, [1, 2] * n)
    if n > 1:
        each([getattr(aten, f"max_pool{n}d_with_indices").default], x, [2] * n)
        each([getattr(aten, f"adaptive_max_pool{n}d").default], x, [2] * n)
case(aten.upsample_linear1d.default, T(2, 4, 5), [7], False)
case(aten._upsample_nearest_exact2d.default, T(2, 4, 5, 6), [7, 7])
for kind in ("upsample_bilinear2d", "_upsample_bilinear2d_aa", "upsample_bicubic2d", "_upsample_bicubic2d_aa"):
    case(getattr(aten, kind).default, T(2, 4, 5, 6), [7, 7], False)
case(aten.upsample_trilinear3d.default, T(2, 4, 5, 6, 3), [7, 7, 7], False)
case(aten.grid_sampler_2d.default, T(2, 4, 5, 6), T(2, 3, 3, 2), 0, 0, False)
case(aten.grid_sampler_3d.default, T(2, 4, 5, 6, 3), T(2, 3, 3, 3, 3), 0, 0, False)
case(aten.im2col.default, T(2, 4, 5, 6), [2, 2], [1, 1], [0, 0], [1, 1])
case(aten.col2im.default, T(2, 16, 20), [5, 6], [2, 2], [1, 1], [0, 0], [1, 1])

# decided by values
case(aten.nonzero.default, T(4, 6), is_free=False)
case(aten.masked_select.default, T(4, 6), T(4, 6, dtype=torch.bool), is_free=False)
case(aten._unique2.default, T(4, 6), is_free=False)
case(aten.unique_dim.default, T(4, 6), 0, is_free=False)
case(aten.unique_consecutive.default, T(4, 6), is_free=False)
case(aten.bincount.default, T(9, high=4), is_free=False)
case(aten.equal.default, T(4, 6), T(4, 6), is_free=False)
case(aten._local_scalar_dense.default, T(1), is_free=False)

# torchvision
if importlib.util.find_spec("torchvision") is not None:
    import torchvision  # noqa: F401  registers its operators

    _vision = torch.ops.torchvision
    case(_vision.nms.default, T(5, 4), T(5), 0.5, is_free=False)
    case(_vision.roi_align.default, T(2, 4, 5, 6), T(3, 5), 1.0, 2, 2, 2, False)
    case(_vision.roi_pool.default, T(2, 4, 5, 6), T(3, 5), 1.0, 2, 2)
    for groups, offset_groups in ((1, 1), (2, 1), (1, 2)):
        kernel = T(6, 4 // groups, 3, 3)
        kernel_args = (T(2, 18 * offset_groups, 5, 6), T(2, 9 * offset_groups, 5, 6), T(6))
        numbers = (1, 1, 1, 1, 1, 1, groups, offset_groups, True)
        case(_vision.deform_conv2d.default, T(2, 4, 5, 6), kernel, *kernel_args, *numbers)
