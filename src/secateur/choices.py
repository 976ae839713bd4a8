"""Operators that values decide: `x[mask]`, `nonzero`, non-maximum suppression, `.item()`.

Where the values don't depend on parameters they are known (see `shadows`), and the answer is the true one. Where they
do, two networks would choose differently, and their records could not be compared. So a choice among elements is taken
alike in every run that is recorded: all of them are chosen, and of boxes the same few. A number that the code itself
goes on with has no such answer. There the record ends, and what the code may still read keeps its widths. An order
(`topk`) has shapes that values don't decide; of two runs to compare, the second follows the first where rounding alone
decides between them.
"""

from __future__ import annotations

import dis
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.tensors import Identities

aten = torch.ops.aten
_TORCH = f"{Path(torch.__file__).parent}/"
_DECIDED = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_ORDERS_LAST = {aten.topk.default, aten.sort.default, aten.sort.stable, aten.kthvalue.default}  # where no axis is named
_ORDERING = _ORDERS_LAST | {aten.argmax.default, aten.argmin.default, aten.max.dim, aten.min.dim, aten.median.dim}
_EQUAL = 1e-3
"""Relative difference of elements that rounding may order either way."""
_N_BOXES = 16  # that suppression leaves of one set; a detector's heads take as long as they have boxes
_NO_VARIABLES = {"_parameters", "_buffers", "_modules"}  # a model's own tensors are in its record
_NO_OBJECTS = (type, types.ModuleType, types.FunctionType, types.MethodType, TorchDispatchMode)


class Undecided(BaseException):
    """The code reads a value that only a run on real weights has. No `Exception`, so that the code can't catch it.

    `tensors` are what it reads, then what it may read later on.
    """

    def __init__(self, read: list[Tensor], frame: Any, until: str) -> None:
        super().__init__()
        self.tensors = [*read, *reachable(frame, until)]


def deciders(func: Any, args: Any, kwargs: Any) -> list[Tensor] | None:
    """The tensors whose values decide what an operator gives, or how much of it; None where its shapes tell."""
    if func in INDEXED:
        return [t for t in args[1] if is_mask(t)] or None
    if func is aten.masked_select.default:
        return [args[1]]
    if not _is_decided(func) or kwargs.get("output_size") is not None:
        return None
    return [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]


@cache
def may_decide(func: Any) -> bool:
    """True for operators of which values can decide what they give."""
    return func in INDEXED or func is aten.masked_select.default or _is_decided(func)


@cache
def _is_decided(func: Any) -> bool:
    return not _DECIDED.isdisjoint(func.tags) or func._schema.name in _CHOOSE_ALL


def is_mask(index: Tensor | None) -> TypeGuard[Tensor]:
    """True for an index that stands for the positions of its hits."""
    return index is not None and index.dtype == torch.bool


def choose_all(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operator gives where every element is chosen; NotImplemented where it chooses none."""
    choose = _CHOOSE_ALL.get(func._schema.name)
    return choose(func, *args, **kwargs) if choose is not None else NotImplemented


def _positions(x: Tensor) -> tuple[Tensor, ...]:
    """The index of every element, axis by axis."""
    places = torch.arange(x.numel(), device=x.device)
    return torch.unravel_index(places, x.shape) if x.dim() else ()


def _nonzero(func: Any, x: Tensor) -> Tensor:
    return torch.stack(_positions(x), 1) if x.dim() else x.new_empty((1, 0), dtype=torch.long)


def _masked_select(func: Any, x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(torch.ones_like(mask), x, x).flatten()  # broadcast


def _index(func: Any, x: Tensor, indices: Sequence[Tensor | None], *args: Any) -> Any:
    return func(x, [p for t in indices for p in (_positions(t) if is_mask(t) else (t,))], *args)


def _non_maximum_suppression(func: Any, boxes: Tensor, *args: Any) -> Tensor:
    """Some boxes from first to last stand for all: hundreds more through the same weights prove no more."""
    n = boxes.shape[0]
    return torch.linspace(0, n - 1, min(n, _N_BOXES), dtype=torch.float64, device=boxes.device).long()


def _unique(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """One value for all: code often loops over what is unique, and its inverse must stay a valid index."""
    inverse = torch.zeros_like(x, dtype=torch.long)
    return x.flatten()[:1].clone(), inverse, torch.full((1,), x.numel(), device=x.device)


_CHOOSE_ALL: dict[str, Callable[..., Any]] = {
    "aten::nonzero": _nonzero,
    "aten::masked_select": _masked_select,
    "aten::_unique2": _unique,
    "torchvision::nms": _non_maximum_suppression,
    **dict.fromkeys([func._schema.name for func in INDEXED], _index),
}


def chosen(func: Any, out: Any) -> Tensor | None:
    """The indices that an operator gives because it orders elements (`topk`, `sort`, `argmax`); None for any other."""
    if func not in _ORDERING:
        return None
    indices: Tensor = out[1] if isinstance(out, tuple | list) else out
    return indices


def as_chosen(func: Any, args: Any, kwargs: Any, out: Any, indices: Tensor) -> Any:
    """What an ordering operator gives where it chooses `indices`, as rounding decides between elements that are alike.

    `out` is its own result, which stays where the other choice is not as good, or there is no axis to choose on.
    """
    own = chosen(func, out)
    given = {a.name: v for a, v in zip(func._schema.arguments, args, strict=False)} | kwargs
    dim = given.get("dim", -1 if func in _ORDERS_LAST else None)
    if own is None or dim is None or own.shape != indices.shape or own.numel() == 0:
        return out
    x = args[0]
    mine, other = (x.gather(dim, i if i.dim() == x.dim() else i.unsqueeze(dim)) for i in (own, indices.to(x.device)))
    scale = float(mine.double().nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    if not torch.allclose(mine.double(), other.double(), rtol=_EQUAL, atol=_EQUAL * scale):
        return out
    return (other.reshape(own.shape), indices) if isinstance(out, tuple | list) else indices


def reachable(frame: Any, until: str) -> list[Tensor]:
    """Tensors in variables that the running functions may still read, innermost function first.

    Args:
        frame: of the innermost function.
        until: the file of the caller of the whole forward.
    """
    found = Identities()
    seen: set[int] = set()
    while frame is not None and frame.f_code.co_filename != until:
        if _is_code(frame.f_code.co_filename):
            for value in _variables(frame).values():
                _collect(value, found, seen)
        frame = frame.f_back
    return list(found)


def _is_code(file: str) -> bool:
    """False for what carries calls in torch: dispatch, and hooks of modules, which hold on to every argument."""
    return not file.startswith(_TORCH) or (file.startswith(f"{_TORCH}nn/") and not file.endswith("/module.py"))


def _variables(frame: Any) -> Mapping[str, Any]:
    """Variables of a running function that code after the current call reads, or the expression that it stands in.

    Inside a loop, and where Python keeps no positions, all of them.
    """
    code = list(dis.get_instructions(frame.f_code))
    later = [i for i in code if i.offset > frame.f_lasti]
    here = [i for i in code if i.offset <= frame.f_lasti][-1].positions
    in_loop = any("JUMP" in i.opname and i.argval <= frame.f_lasti for i in later)
    if in_loop or here is None or here.col_offset is None:
        return frame.f_locals  # type: ignore[no-any-return]
    begin, end = _span(here)
    around = [_span(i.positions) for i in later]
    start = min([b for b, e in around if b <= begin and end <= e], default=begin)
    read: set[Any] = set()
    for i in code:
        if "LOAD" in i.opname and (i.offset > frame.f_lasti or _span(i.positions)[0] >= start):
            read.update(i.argval if isinstance(i.argval, tuple) else (i.argval,))
    return {name: value for name, value in frame.f_locals.items() if name in read}


def _span(at: dis.Positions | None) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where an instruction's source begins and ends, as (line, column); code without a source is nowhere."""
    if at is None or None in at:
        return (-1, -1), (-1, -1)
    return (at.lineno or 0, at.col_offset or 0), (at.end_lineno or 0, at.end_col_offset or 0)


def _collect(value: Any, found: Identities, seen: set[int]) -> None:
    if isinstance(value, Tensor):
        found.setdefault(value, True)
        return
    if id(value) in seen or isinstance(value, _NO_OBJECTS):
        return
    seen.add(id(value))
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        inside = list(value)
    else:
        hidden = _NO_VARIABLES if isinstance(value, nn.Module) else ()
        inside = [v for name, v in getattr(value, "__dict__", {}).items() if name not in hidden]
    for item in inside:
        _collect(item, found, seen)
