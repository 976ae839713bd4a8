"""Operators that index by tensors, and operators that make tensors from numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from secateur.dims.algebra import Dim
from secateur.dims.rule import OP_RULES, Axes, Node

aten = torch.ops.aten


@OP_RULES.register(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(op: Node, x: Axes, indices: list[Axes | None]) -> None:
    """out[j…, rest] = x[a[j…], b[j…], rest], as NumPy orders advanced indices"""
    at = []
    axis = 0
    for t in indices:
        if t is not None and t.value.dtype == torch.bool:  # a mask stands for as many axes as it has
            for i in range(axis, axis + len(t)):
                op.freeze(x[i], "indexed by a mask")
                op.freeze(t[i - axis], "a mask that indexes")
                at.append(i)
        elif t is not None:
            _look_up(op, x[axis], t)
            at.append(axis)
        axis += 1 if t is None else max(len(t), 1) if t.value.dtype == torch.bool else 1
    n_rest = len(x) - len(at)
    n_new = len(op.shape) - n_rest
    together = at == list(range(at[0], at[-1] + 1))
    place = at[0] if together else 0
    rest = [d for i, d in enumerate(x) if i not in at]
    plain = [None if t is None or t.value.dtype == torch.bool else t for t in indices]
    made = [_indexed(op, plain, k - n_new, n) for k, n in enumerate(op.shape[place : place + n_new])]
    op.out(*rest[:place], *made, *rest[place:])


def _look_up(op: Node, dim: Dim, indices: Axes | None) -> None:
    """An axis that is indexed by what came from a top-k over a dim is that dim; any other index fixes the axis."""
    known = op.indexed_by(indices) if indices is not None else None
    if known is not None and known.size == dim.size:
        op.equate(dim, known)
    else:
        op.freeze(dim, "indexed by a tensor")


def _indexed(op: Node, indices: list[Axes | None], axis: int, size: int) -> Dim:
    """The dim of one axis of the broadcast index tensors."""
    dims = [t[axis] for t in indices if t is not None and len(t) >= -axis and t[axis].size > 1]
    for other in dims[1:]:
        op.equate(dims[0], other)
    return dims[0] if dims and dims[0].size == size else op.new(size, "made by an index")


@OP_RULES.register(aten.index_select.default)
def index_select(op: Node, x: Axes, dim: int, indices: Axes) -> None:
    """out[…, j, …] = x[…, index[j], …]"""
    _look_up(op, x[dim], indices)
    dims = list(x)
    dims[dim] = indices[0] if len(indices) else op.new(1)
    op.out(*dims)


@OP_RULES.register(aten.gather.default)
def gather(op: Node, x: Axes, dim: int, indices: Axes, **kwargs: Any) -> None:
    """out[i, j] = x[i, index[i, j]]"""
    for axis, (a, b) in enumerate(zip(x, indices, strict=True)):
        if axis == dim % len(x):
            _look_up(op, a, indices)
        elif a.size == b.size:
            op.equate(a, b)
        else:
            op.freeze(a, "gathered in part")
    op.out(*indices)


@OP_RULES.register(
    aten.scatter.src, aten.scatter.value, aten.scatter_.src, aten.scatter_.value, aten.scatter_add.default,
    aten.scatter_add_.default,
)  # fmt: skip
def scatter(op: Node, x: Axes, dim: int, indices: Axes, src: Any = None, **kwargs: Any) -> None:
    """out = x, but out[i, index[i, j]] = src[i, j]"""
    _look_up(op, x[dim], indices)
    for axis, a in enumerate(x):
        for t in (indices, src):
            if isinstance(t, Axes) and axis != dim % len(x) and t[axis].size == a.size:
                op.equate(a, t[axis])
            elif isinstance(t, Axes):
                op.freeze(t[axis], "scattered")
                if axis != dim % len(x):
                    op.freeze(a, "scattered in part")
    op.out(*x)


@OP_RULES.register(aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
def index_put(op: Node, x: Axes, indices: list[Axes | None], values: Axes, *args: Any) -> None:
    """out = x, but out[index…] = values"""
    at = [i for i, t in enumerate(indices) if t is not None]
    for i in at:
        op.freeze(x[i], "indexed by a tensor")
    tail = list(x)[at[-1] + 1 :]
    for a, b in zip(reversed(tail), reversed(values.dims), strict=False):
        if b.size > 1:
            op.equate(a, b)
    for i in range(at[-1]):
        if i not in at:
            op.freeze(x[i], "before an indexed axis")
    for b in values.dims[: max(0, len(values) - len(tail))]:
        op.freeze(b, "indexed by a tensor")
    op.out(*x)


@OP_RULES.register(aten.index_add.default, aten.index_add_.default, aten.index_copy.default, aten.index_copy_.default)
def index_add(op: Node, x: Axes, dim: int, indices: Axes, source: Axes, **kwargs: Any) -> None:
    """out = x, but out[…, index[j], …] += source[…, j, …]"""
    for axis, (a, b) in enumerate(zip(x, source, strict=True)):
        if axis == dim % len(x):
            op.freeze(a, "indexed by a tensor")
            op.freeze(b, "indexed by a tensor")
        else:
            op.equate(a, b)
    op.out(*x)


@OP_RULES.register(
    aten.zeros.default, aten.ones.default, aten.full.default, aten.new_zeros.default, aten.new_ones.default,
    aten.new_full.default, aten.scalar_tensor.default, aten.empty.memory_format, aten.new_empty.default,
    aten.empty_strided.default, aten.new_empty_strided.default,
)  # fmt: skip
def constant(op: Node, *args: Any, **kwargs: Any) -> None:
    """every element is alike, so that an axis may shrink with what it is used with"""
    op.shape_decides()
    op.out(*(op.new(n) for n in op.shape))


@OP_RULES.register(
    aten.arange.default, aten.arange.start, aten.arange.start_step, aten.linspace.default, aten.eye.default,
    aten.eye.m, aten.rand.default, aten.randn.default, aten.randint.default, aten.randint.low,
    aten.randperm.default, aten.tril_indices.default, aten.triu_indices.default, aten.bartlett_window.default,
    aten.hann_window.default,
)  # fmt: skip
def counted(op: Node, *args: Any, **kwargs: Any) -> None:
    """elements depend on their position, or are random"""
    op.out(*(op.new(n, "made from numbers") for n in op.shape))


@OP_RULES.register(aten.one_hot.default)
def one_hot(op: Node, x: Axes, n_classes: int = -1) -> None:
    """out[…, k] = 1 where x[…] = k"""
    op.out(*x, op.new(op.shape[-1], "classes of a one-hot code"))


@OP_RULES.register(
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_dim.default,
    aten.unique_consecutive.default, aten.bincount.default, aten.equal.default, aten._local_scalar_dense.default,
    "torchvision::nms",
)  # fmt: skip
def decided(op: Node, *args: Any, **kwargs: Any) -> None:
    """values decide what comes out, or how much of it"""
    for t in pytree.tree_leaves((args, kwargs)):
        for dim in t if isinstance(t, Axes) else ():
            op.freeze(dim, "values along the axis decide what comes out")
    for value in op.op.outputs:
        if value is not None:
            op.out(*(op.new(n, "as many as values say") for n in value.shape))
