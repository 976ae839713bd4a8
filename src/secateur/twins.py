"""Twins: tensors without memory, which a capture runs on.

A twin has the shape, strides, dtype and device of a tensor, so that torch takes the same path for it, and no values.
What an operator makes of twins depends on these, on its plain arguments and on the default dtype alone. Torch's fake
tensors find it the first time, through many layers of Python; networks repeat themselves, so it is remembered, in this
capture and in every later one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_impls import op_implementations_checks
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._mode_utils import no_dispatch

from secateur.attention import ATTENTION

_MOST = 1 << 16  # calls that are remembered
_MADE: dict[Any, Any] = {}
_MOVES = {torch.ops.aten._unsafe_view.default}
_FIRST = "first"  # the operator writes into its first argument and returns it


@dataclass(frozen=True, eq=False, slots=True)
class Form:
    """All that an operator can know of a twin. One object per value, so that forms are compared by identity."""

    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@functools.lru_cache(maxsize=_MOST)
def form(shape: torch.Size, strides: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Form:
    """The form of these. Meta counts as CPU: code that makes tensors names no device, and all of it must agree."""
    return Form(shape, strides, dtype, torch.device("cpu") if device.type == "meta" else device)


class Twin(Tensor):
    """A tensor of some form without memory. Operators on it give twins."""

    __slots__ = ("form",)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    form: Form

    @staticmethod
    def of(form: Form) -> Twin:
        """A new twin of a form."""
        made: Twin = Tensor._make_wrapper_subclass(
            Twin, form.shape, form.strides, 0, None, form.dtype, torch.strided, form.device
        )
        made.form = form
        return made

    def become(self, form: Form) -> None:
        """Take on another form; whoever holds this twin sees it."""
        self.data = Twin.of(form)
        self.form = form

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        return run(func, args, kwargs or {})

    def dim(self) -> int:
        """Asked for by many modules: torch's own goes through its function modes."""
        return len(self.form.shape)

    def tolist(self) -> Any:
        """Element by element, as code that reads values is answered for each."""
        return self.item() if self.dim() == 0 else [row.tolist() for row in self]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Twin({list(self.shape)}, {self.dtype})"


def twin(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """A tensor's twin, plainly laid out where another shape is given. A sparse tensor stays what it is."""
    if tensor.layout is not torch.strided:
        return tensor
    if shape is not None:
        return Twin.of(plain_form(shape, tensor.dtype, tensor.device))
    return Twin.of(form(tensor.shape, tensor.stride(), tensor.dtype, tensor.device))


def plain_form(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Form:
    """The form of a tensor whose last axis runs fastest."""
    return form(torch.Size(shape), _plain_strides(shape), dtype, device)


def _plain_strides(shape: Sequence[int]) -> tuple[int, ...]:
    strides = [1] * len(shape)
    for i in range(len(shape) - 1, 0, -1):
        strides[i - 1] = strides[i] * max(shape[i], 1)
    return tuple(strides)


def map_tensors(function: Callable[[Tensor], Any], value: Any) -> Any:
    """A call's arguments with something in place of each tensor. Arguments nest in lists, tuples and dicts alone."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([map_tensors(function, v) for v in value])
    if isinstance(value, dict):
        return {k: map_tensors(function, v) for k, v in value.items()}
    return value


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on twins, or give what an equal call gave before."""
    reshapes, is_settled = _nature(func)
    if reshapes:
        return _reshape(func, args, kwargs)
    key: Any = None
    if is_settled:
        parts = [func, torch.get_default_dtype()]
        parts += kwargs
        if _describe(args, parts) and _describe(kwargs.values(), parts):
            key = tuple(parts)
    made = _MADE.get(key) if key is not None else None
    if type(made) is Form:
        return Twin.of(made)
    if made is not None:
        return args[0] if made is _FIRST else type(made)([None if f is None else Twin.of(f) for f in made])
    out = _work_out(func, args, kwargs)
    if key is not None and len(_MADE) < _MOST and (made := _forms(func, args, out)) is not None:
        _MADE[key] = made
    return out


@functools.cache
def _nature(func: Any) -> tuple[bool, bool]:
    """Whether an operator gives its first argument other axes, and whether forms of inputs alone decide its output."""
    return torch.Tag.inplace_view in func.tags, torch.Tag.nondeterministic_seeded not in func.tags


def _describe(values: Iterable[Any], parts: list[Any]) -> bool:
    """Append all of these arguments that outputs can depend on; False where one can't be described."""
    for value in values:
        kind = type(value)
        if kind is Twin:
            parts.append(value.form)
        elif kind is list or kind is tuple:
            parts += (kind, len(value))
            if not _describe(value, parts):
                return False
        elif isinstance(value, Tensor):
            if value.layout is not torch.strided:
                return False
            parts.append(form(value.shape, value.stride(), value.dtype, value.device))
        else:
            parts += (kind, value)  # 1, 1.0 and True are equal, but not to an operator
    return True


def _forms(func: Any, args: Any, out: Any) -> Any:
    """What to remember of a result; None where it is more than forms can tell."""
    if args and out is args[0]:
        return _FIRST
    if func._schema.is_mutable:
        return None
    if isinstance(out, Twin):
        return out.form
    if type(out) in (tuple, list) and all(t is None or isinstance(t, Twin) for t in out):
        return type(out)([None if t is None else t.form for t in out])
    return None


def _reshape(func: Any, args: Any, kwargs: Any) -> Any:
    """An operator that gives its first argument other axes, such as `unsqueeze_`: it touches no memory."""
    first, *others = args
    with no_dispatch():
        out = func(first if isinstance(first, Twin) else twin(first), *others, **kwargs)
    out.form = form(out.shape, out.stride(), out.dtype, out.device)
    return out


def _work_out(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator makes of twins that were not seen before."""
    tensors: list[Tensor] = []
    map_tensors(tensors.append, (args, kwargs))
    are_plain = all(t.layout is torch.strided and not t.is_meta for t in tensors)
    if len({t.device for t in tensors}) == 1 and "device" not in kwargs and are_plain:
        known = _BY_FORMULA.get(func)
        if known is not None and not kwargs and (out := known(*args)) is not None:
            return out
        if known is None and _is_plain(func):
            return _on_meta(func, args, kwargs)
    return _on_fakes(func, args, kwargs)


def _convolution(*args: Any) -> Twin | None:
    """Plain layouts in, plain layout out. Torch's fake tensors ask the kernels, which answer the same."""
    if any(isinstance(a, Tensor) and a.stride() != _plain_strides(a.shape) for a in args):
        return None
    return Twin.of(plain_form(_on_meta(_CONVOLUTION, args, {}).shape, args[0].dtype, args[0].device))


def _batch_norm(x: Tensor, *args: Any) -> tuple[Twin | None, ...] | None:
    """In eval mode the output is like the input, and nothing is saved. Widths are checked before the dispatch."""
    if args[4] is not False or any(isinstance(a, Tensor) and a.dtype != x.dtype for a in args):
        return None
    if x.is_contiguous():
        return Twin.of(plain_form(x.shape, x.dtype, x.device)), None, None
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return Twin.of(form(x.shape, x.stride(), x.dtype, x.device)), None, None
    return None


def _layer_norm(x: Tensor, shape: list[int], *args: Any) -> tuple[Twin, ...] | None:
    """The output is like the input, the mean and the deviation have one element where it is normalised."""
    tail = tuple(shape)
    like = all(a.shape == tail and a.dtype == x.dtype for a in args if isinstance(a, Tensor))
    if not like or x.shape[x.dim() - len(tail) :] != tail or not x.is_contiguous() or x.dtype.itemsize < 4:
        return None
    saved = plain_form((*x.shape[: x.dim() - len(tail)], *(1 for _ in tail)), x.dtype, x.device)
    return Twin.of(plain_form(x.shape, x.dtype, x.device)), Twin.of(saved), Twin.of(saved)


def _cat(tensors: list[Tensor], dim: int = 0) -> Any:
    """Plain layouts in, plain layout out; else what the kernel for the meta device says."""
    first = tensors[0]
    dim %= max(first.dim(), 1)
    others = {(t.dtype, t.shape[:dim], t.shape[dim + 1 :]) for t in tensors}
    if len(others) > 1 or not 1 < first.dim() < 5 or not all(map(_is_plainly_laid, tensors)):
        return _on_meta(_CAT, (tensors, dim), {})
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return Twin.of(plain_form(shape, first.dtype, first.device))


def _is_plainly_laid(t: Tensor) -> bool:
    """True where the last axis runs fastest, and no other layout says the same."""
    return t.is_contiguous() and not (t.dim() == 4 and t.is_contiguous(memory_format=torch.channels_last))


_CAT, _CONVOLUTION = torch.ops.aten.cat.default, torch.ops.aten.convolution.default
_BY_FORMULA: dict[Any, Callable[..., Any]] = {  # what takes fake tensors longest; None where it is another case
    _CONVOLUTION: _convolution,
    torch.ops.aten.native_batch_norm.default: _batch_norm,
    torch.ops.aten.native_layer_norm.default: _layer_norm,
    _CAT: _cat,
}


@functools.cache
def _is_plain(func: Any) -> bool:
    """True for operators whose kernel for the meta device is all that fake tensors would ask.

    Not so for batch norms and attention: what they save, or how they lay it out, depends on the device.
    """
    if func is ATTENTION or "batch_norm" in func.name():
        return False
    has_kernel = torch._C._dispatch_has_computed_kernel_for_dispatch_key(func.name(), "Meta")
    moves = func.is_view or func in _MOVES
    return has_kernel and (moves or not any(check(func) for check, _ in op_implementations_checks))


def _on_meta(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator's own kernel for the meta device."""
    twins: dict[int, Tensor] = {}  # by id of the meta tensor
    metas: dict[int, Tensor] = {}  # by id of the twin

    def enter(t: Tensor) -> Tensor:
        if id(t) not in metas:
            metas[id(t)] = meta = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            twins[id(meta)] = t
        return metas[id(t)]

    args, kwargs = map_tensors(enter, args), map_tensors(enter, kwargs)
    device = next(iter(twins.values())).device
    out = func(*args, **kwargs)
    return map_tensors(
        lambda t: twins[id(t)] if id(t) in twins else Twin.of(form(t.shape, t.stride(), t.dtype, device)), out
    )


def _on_fakes(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on fake tensors of the same forms."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, tuple[FakeTensor, Twin]] = {}  # by id of the twin

    def enter(t: Tensor) -> Tensor:
        if not isinstance(t, Twin):
            return t
        if id(t) not in fakes:
            shell = torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="meta")
            fakes[id(t)] = FakeTensor(mode, shell, t.device), t
        return fakes[id(t)][0]

    args, kwargs = map_tensors(enter, args), map_tensors(enter, kwargs)
    with mode:
        out = func(*args, **kwargs)
    twins = {id(fake): t for fake, t in fakes.values()}
    return map_tensors(lambda t: twins[id(t)] if id(t) in twins else twin(t), out)
