"""What a capture can know about values: answers to code that reads them.

Fake tensors have no values, but code asks: `if mask.all()`, `.item()`, `x[x > 0]`. What depends on inputs and constants
alone is computed along on real tensors, its shadows, and answered truly. What depends on parameters is not computed;
where only its *number of hits* is asked (`nonzero`, a mask as index, non-maximum suppression), all are taken for hits:
such an axis is frozen anyway, and the proof runs on real values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from secateur.tensors import Identities
from secateur.twins import Twin, map_tensors

aten = torch.ops.aten
_LIMIT = 1 << 22  # elements: masks and positions are small; what is larger is data
_UNIFORM = {aten.rand.default, aten.rand_like.default}
_RANDOM = torch.Tag.nondeterministic_seeded


class Shadows:
    """Real values beside fake tensors, where they don't depend on parameters."""

    def __init__(self) -> None:
        self.values = Identities()

    def set(self, fake: Tensor, value: Tensor) -> None:
        """Give a constant or an input its value."""
        if not value.is_meta and not isinstance(value, Twin) and value.numel() <= _LIMIT:
            with unset_fake_temporarily():
                self.values[fake] = value.detach().clone()  # code may write into it

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Compute an operator on shadows, if all its tensors have one."""
        if func in _UNIFORM and out.numel() <= _LIMIT:  # random paths of training (layer drop): nothing is dropped
            with unset_fake_temporarily():
                self.values[out] = torch.full(out.shape, 0.999, dtype=out.dtype)
            return
        if not self._knows(args) or not self._knows(kwargs.values()) or _RANDOM in func.tags:
            if func._schema.is_mutable:
                self._forget(_outputs(out))
            return
        if sum(t.numel() for t in _outputs(out)) > _LIMIT:
            return
        real_args, real_kwargs = (map_tensors(self.values.__getitem__, a) for a in (args, kwargs))
        with unset_fake_temporarily():
            result = func(*real_args, **real_kwargs)
        for t, value in zip(_outputs(out), _outputs(result), strict=True):
            self.values[t] = value

    def _knows(self, args: Iterable[Any]) -> bool:
        """True where every tensor among arguments has a value."""
        for a in args:
            if isinstance(a, Tensor):
                if a not in self.values:
                    return False
            elif isinstance(a, list | tuple) and not self._knows(a):
                return False
        return True

    def _forget(self, written: list[Tensor]) -> None:
        """Something without a shadow was written into these: they and all views of them are unknown now."""
        lost = {self.values[t].untyped_storage().data_ptr() for t in written if t in self.values}
        for t, value in list(self.values.items()) if lost else ():
            if value.untyped_storage().data_ptr() in lost:
                del self.values[t]

    def answer(self, func: Any, args: Any) -> Any:
        """The result of an operator whose result or shape depends on values, or NotImplemented where it doesn't."""
        if func is aten._local_scalar_dense.default and args[0] in self.values:
            with unset_fake_temporarily():
                return self.values[args[0]].item()
        if func is aten.index.Tensor and any(t is not None and t.dtype == torch.bool for t in args[1]):
            return self._index(*args)
        counter = _COUNTED.get(func)
        if counter is None and func.name() == "torchvision::nms":
            counter = _all_boxes
        if counter is None:
            return NotImplemented
        if args[0] in self.values and func is aten.nonzero.default:
            with unset_fake_temporarily():
                found = self.values[args[0]].nonzero()
            out = args[0].new_empty(tuple(found.shape), dtype=torch.long)
            self.values[out] = found
            return out
        return counter(args[0])

    def _index(self, x: Tensor, indices: list[Tensor | None]) -> Tensor:
        """Indexing with masks, as indexing with the positions of their hits."""
        positions: list[Tensor | None] = []
        for mask in indices:
            if mask is None or mask.dtype != torch.bool:
                positions.append(mask)
                continue
            n = mask.numel()
            if mask in self.values:
                with unset_fake_temporarily():
                    n = int(self.values[mask].sum())
            positions += [torch.zeros(n, dtype=torch.long, device=mask.device)] * mask.dim()
        return aten.index.Tensor(x, positions)  # type: ignore[no-any-return]


def _all_hits(x: Tensor) -> Tensor:
    return x.new_empty((x.numel(), x.dim()), dtype=torch.long)


def _all_elements(x: Tensor) -> Tensor:
    return x.new_empty((x.numel(),))


def _all_boxes(boxes: Tensor) -> Tensor:
    return boxes.new_empty((boxes.shape[0],), dtype=torch.long)


_COUNTED: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.nonzero.default: _all_hits,
    aten.masked_select.default: _all_elements,
}


def _outputs(out: Any) -> list[Tensor]:
    return [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]
