"""Operators that rearrange: the index formulas of einops, as equations between axes."""

from __future__ import annotations

from typing import Any

import torch

from secateur.dims.algebra import ONE, AlignError, Dim, cat, factor, find, leaves, prod, split
from secateur.dims.rule import OP_RULES, Axes, Node

aten = torch.ops.aten


@OP_RULES.register(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten._reshape_alias.default,
    aten._reshape_copy.default,
)
def view(op: Node, x: Axes, *size: Any) -> None:
    """x[i…] = out[j…] at equal linear index: the smallest runs of axes with equal products are equated as grids"""
    op.shape_decides()
    op.out(*regroup(op, list(x), op.shape))


def regroup(op: Node, dims: list[Dim], shape: tuple[int, ...]) -> list[Dim]:
    """New axes of the given sizes for a tensor whose elements stay in order; axes of size 1 take no part."""
    if 0 in shape:
        for dim in dims:
            op.freeze(dim, "empty tensor")
        return [op.new(n, "empty tensor") for n in shape]
    out: list[Dim] = [ONE] * len(shape)
    left = [d for d in dims if d.size > 1]
    right = [i for i, n in enumerate(shape) if n > 1]
    while left or right:
        run = [left.pop(0)]
        places = [right.pop(0)]
        n_left, n_right = run[0].size, shape[places[0]]
        while n_left != n_right:
            if n_left < n_right:
                run.append(left.pop(0))
                n_left *= run[-1].size
            else:
                places.append(right.pop(0))
                n_right *= shape[places[-1]]
        if len(places) == 1:
            out[places[0]] = prod(run)
        else:
            for place in places:
                out[place] = op.new(shape[place])
            op.equate(prod(run), prod(out[place] for place in places))
    return out


@OP_RULES.register(aten.permute.default)
def permute(op: Node, x: Axes, dims: list[int]) -> None:
    """out[i_dims[0], i_dims[1], …] = x[i_0, i_1, …]"""
    op.out(*(x[d] for d in dims))


@OP_RULES.register(aten.t.default, aten.t_.default, aten.numpy_T.default)
def t(op: Node, x: Axes) -> None:
    """out[j, i] = x[i, j]"""
    op.out(*reversed(x.dims))


@OP_RULES.register(aten.transpose.int, aten.transpose_.default, aten.swapaxes.default)
def transpose(op: Node, x: Axes, dim0: int, dim1: int) -> None:
    """out[…, j, …, i, …] = x[…, i, …, j, …]"""
    dims = list(x)
    dims[dim0], dims[dim1] = dims[dim1], dims[dim0]
    op.out(*dims)


@OP_RULES.register(aten.unsqueeze.default, aten.unsqueeze_.default)
def unsqueeze(op: Node, x: Axes, dim: int) -> None:
    """out[…, 0, …] = x[…]"""
    dims = list(x)
    dims.insert(dim % (len(x) + 1), ONE)
    op.out(*dims)


@OP_RULES.register(
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze_.default,
    aten.squeeze_.dim,
    aten.squeeze_.dims,
)
def squeeze(op: Node, x: Axes, dim: Any = None) -> None:
    """out[…] = x[…, 0, …]"""
    at = range(len(x)) if dim is None else [d % len(x) for d in ([dim] if isinstance(dim, int) else dim)]
    op.out(*(d for i, d in enumerate(x) if not (i in at and d.size == 1)))


@OP_RULES.register(aten.expand.default, aten.expand_copy.default)
def expand(op: Node, x: Axes, size: list[int], **kwargs: Any) -> None:
    """out[r, i] = x[0, i]: a repeated axis is new, and may shrink with what it is used with"""
    op.shape_decides()
    shape = op.shape
    dims = [ONE] * (len(shape) - len(x)) + list(x)
    op.out(*(d if d.size == n else op.new(n) for d, n in zip(dims, shape, strict=True)))


@OP_RULES.register(aten.repeat.default)
def repeat(op: Node, x: Axes, repeats: list[int]) -> None:
    """out[(r i)] = x[i]"""
    op.shape_decides()
    dims = [ONE] * (len(repeats) - len(x)) + list(x)
    op.out(*(prod([op.new(r), d]) for r, d in zip(repeats, dims, strict=True)))


@OP_RULES.register(aten.repeat_interleave.self_int)
def repeat_interleave(op: Node, x: Axes, repeats: int, dim: int | None = None, **kwargs: Any) -> None:
    """out[(i r)] = x[i]"""
    axes = [prod(x)] if dim is None else list(x)
    axes[dim or 0] = prod([axes[dim or 0], op.new(repeats)])
    op.out(*axes)


@OP_RULES.register(aten.select.int)
def select(op: Node, x: Axes, dim: int, index: int) -> None:
    """out[i] = x[i, index]"""
    op.freeze(x[dim], "indexed by a number")
    dims = list(x)
    del dims[dim]
    op.out(*dims)


def cut(op: Node, dim: Dim, sizes: list[int]) -> list[Dim]:
    """Cut an axis into segments of these sizes; where its structure forbids that, freeze it."""
    parts: list[Dim] = []
    rest = dim
    try:
        for size in sizes[:-1]:
            head, rest = split(rest, size)
            parts.append(head)
    except AlignError as error:
        op.freeze(dim, f"cut ({error})")
        return [op.new(n, "cut") for n in sizes]
    return [*parts, rest]


@OP_RULES.register(aten.slice.Tensor, aten.slice_copy.Tensor)
def slice_(op: Node, x: Axes, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> None:
    """out[i] = x[start + step * i]"""
    dims, dim = list(x), dim % len(x)
    n, first = x[dim].size, start or 0
    first = max(0, first + n if first < 0 else min(first, n))
    length = op.shape[dim]
    if length == n:
        op.out(*x)
        return
    if step > 1 or length == 0:
        dims[dim] = _strided(op, x[dim], first, step, length)
        op.out(*dims)
        return
    sizes = [s for s in (first, length, n - first - length) if s]
    parts = cut(op, x[dim], sizes)
    dims[dim] = parts[1] if first else parts[0]
    if first and (start or 0) > 0:
        op.expect(2, parts[0])
    op.out(*dims)


def _strided(op: Node, dim: Dim, first: int, step: int, length: int) -> Dim:
    """Every step-th index: the outer factor of a grid with rows of `step`, whose inner factor is then fixed."""
    if length and dim.size % step == 0 and first < step and length == dim.size // step:
        try:
            outer, inner = factor(dim, step)
        except AlignError:
            pass
        else:
            op.freeze(inner, "strided slice")
            return outer
    op.freeze(dim, "strided slice")
    return op.new(length, "strided slice")


@OP_RULES.register(aten.split.Tensor, aten.unsafe_split.Tensor)
def split_equal(op: Node, x: Axes, size: int, dim: int = 0) -> None:
    """out_k[i] = x[k * size + i]; the code takes equal parts, so that their counts stay equal"""
    sizes = [v.shape[dim] for v in op.op.outputs if v is not None]
    parts = cut(op, x[dim], sizes) if len(sizes) > 1 else [x[dim]]
    op.tie(parts if sizes[-1] == sizes[0] else parts[:-1])
    if sizes[-1] != sizes[0]:
        op.freeze(x[dim], "split into unequal parts by one number")
    op.expect(1, parts[0])
    _emit(op, x, dim, parts)


@OP_RULES.register(
    aten.split_with_sizes.default, aten.split_with_sizes_copy.default, aten.unsafe_split_with_sizes.default
)
def split_sizes(op: Node, x: Axes, sizes: list[int], dim: int = 0) -> None:
    """out_k[i] = x[sizes_0 + … + sizes_{k-1} + i]"""
    op.shape_decides()
    filled = [s for s in sizes if s]
    parts = iter(cut(op, x[dim], filled) if len(filled) > 1 else [x[dim]])
    _emit(op, x, dim, [next(parts) if s else op.new(0, "empty") for s in sizes])


def _emit(op: Node, x: Axes, dim: int, parts: list[Dim]) -> None:
    for part in parts:
        dims = list(x)
        dims[dim] = part
        op.out(*dims)


@OP_RULES.register(aten.unbind.int)
def unbind(op: Node, x: Axes, dim: int = 0) -> None:
    """out_k[i] = x[k, i]"""
    op.freeze(x[dim], "unbound into separate tensors")
    for _ in op.op.outputs:
        op.out(*(d for i, d in enumerate(x) if i != dim % len(x)))


@OP_RULES.register(aten.cat.default)
def concatenate(op: Node, tensors: list[Axes], dim: int = 0) -> None:
    """out[(a b …)] = x_a ++ x_b ++ …"""
    used = [t for t in tensors if t.shape != (0,)]
    first, *others = used
    dim %= len(first)
    dims = [find(d) for d in first]  # that others were equated with before
    for t in others:
        for i, d in enumerate(t.dims):
            if i != dim:
                op.equate(dims[i], d)
    dims[dim] = cat(t[dim] for t in used)
    op.out(*dims)


@OP_RULES.register(aten.stack.default)
def stack(op: Node, tensors: list[Axes], dim: int = 0) -> None:
    """out[k, i] = x_k[i]"""
    first, *others = tensors
    for t in others:
        for a, b in zip(first, t, strict=True):
            op.equate(a, b)
    dims = list(first)
    dims.insert(dim % (len(first) + 1), op.new(len(tensors), "stacked"))
    op.out(*dims)


@OP_RULES.register(aten.constant_pad_nd.default)
def constant_pad(op: Node, x: Axes, pad: list[int], value: float = 0) -> None:
    """out[l + i] = x[i], constant elsewhere; negative padding cuts; margins of a free axis are free"""
    dims = list(x)
    for k in range(len(pad) // 2):
        axis, before, after = len(x) - 1 - k, pad[2 * k], pad[2 * k + 1]
        dim = dims[axis]
        if before < 0 or after < 0:
            sizes = [max(-before, 0), dim.size + min(before, 0) + min(after, 0), max(-after, 0)]
            parts = cut(op, dim, [s for s in sizes if s])
            dim = parts[1] if sizes[0] else parts[0]
        why = "constant padding" if all(leaf.frozen for leaf in leaves(dim)) else None
        margins = [op.new(n, why) if n > 0 else None for n in (before, after)]
        dims[axis] = cat(d for d in (margins[0], dim, margins[1]) if d is not None)
    op.out(*dims)


@OP_RULES.register(aten.as_strided.default, aten.as_strided_.default)
def as_strided(op: Node, x: Axes, size: list[int], stride: list[int], offset: int | None = None) -> None:
    """the identity where size and strides are those of a plain tensor of x's shape; anything else keeps its axes"""
    plain = [1] * len(size)
    for i in range(len(size) - 1, 0, -1):
        plain[i - 1] = plain[i] * size[i]
    same = all(n == 1 or s == p for n, s, p in zip(size, stride, plain, strict=True))
    if tuple(size) == x.shape and same and not offset:
        op.shape_decides()
        op.out(*x)
        return
    for dim in x:
        op.freeze(dim, "read with explicit strides")
    op.out(*(op.new(n, "read with explicit strides") for n in size))


@OP_RULES.register(aten.pixel_shuffle.default)
def pixel_shuffle(op: Node, x: Axes, r: int) -> None:
    """out[…, c, (h r1), (w r2)] = x[…, (c r1 r2), h, w]"""
    channels, factors = op.new(x[-3].size // r**2), [op.new(r, "pixel shuffle") for _ in range(2)]
    op.equate(x[-3], prod([channels, *factors]))
    op.out(*x.dims[:-3], channels, prod([x[-2], factors[0]]), prod([x[-1], factors[1]]))


@OP_RULES.register(aten.pixel_unshuffle.default)
def pixel_unshuffle(op: Node, x: Axes, r: int) -> None:
    """out[…, (c r1 r2), h, w] = x[…, c, (h r1), (w r2)]"""
    grids = [(op.new(d.size // r), op.new(r, "pixel shuffle")) for d in x.dims[-2:]]
    for d, grid in zip(x.dims[-2:], grids, strict=True):
        op.equate(d, prod(grid))
    (h, r1), (w, r2) = grids
    op.out(*x.dims[:-3], prod([x[-3], r1, r2]), h, w)


@OP_RULES.register(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def channel_shuffle(op: Node, x: Axes, groups: int) -> None:
    """out[:, (c g)] = x[:, (g c)]"""
    g, c = op.new(groups), op.new(x[1].size // groups)
    op.expect(1, g)
    op.equate(x[1], prod([g, c]))
    op.out(x[0], prod([c, g]), *x.dims[2:])


@OP_RULES.register(aten.view_as_real.default)
def view_as_real(op: Node, x: Axes) -> None:
    """out[…, 2] = (real, imaginary)"""
    op.out(*x, op.new(2, "real and imaginary part"))


@OP_RULES.register(aten.view_as_complex.default)
def view_as_complex(op: Node, x: Axes) -> None:
    """out[…] = x[…, 0] + i x[…, 1]"""
    op.freeze(x[-1], "real and imaginary part")
    op.out(*x.dims[:-1])


@OP_RULES.register(aten.diagonal.default)
def diagonal(op: Node, x: Axes, offset: int = 0, dim1: int = 0, dim2: int = 1) -> None:
    """out[…, i] = x[…, i, i + offset]"""
    op.freeze(x[dim1], "diagonal")
    op.freeze(x[dim2], "diagonal")
    rest = [d for i, d in enumerate(x) if i not in (dim1 % len(x), dim2 % len(x))]
    op.out(*rest, op.new(op.shape[-1], "diagonal"))


@OP_RULES.register(aten.unfold.default)
def unfold(op: Node, x: Axes, dim: int, size: int, step: int) -> None:
    """out[…, i, …, j] = x[…, step * i + j, …]"""
    op.freeze(x[dim], "sliding window")
    dims = list(x)
    dims[dim] = op.new(op.shape[dim % len(x)], "sliding window")
    op.out(*dims, op.new(size, "sliding window"))
