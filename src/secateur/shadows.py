"""What a capture knows about values, so that code which reads them is answered truly: `if mask.all()`, `x[x > 0]`.

What depends on inputs and constants alone is known. A run on real tensors has its values; twins have none, so it is
computed along beside them on real tensors, their shadows. What depends on parameters is not known: see `choices`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from secateur.choices import INDEXED, is_mask
from secateur.record import parts
from secateur.tensors import Identities
from secateur.twins import Twin, map_tensors, twin

aten = torch.ops.aten
_LIMIT = 1 << 22  # elements: masks and positions are small; what is larger is data
_UNIFORM = {aten.rand.default, aten.rand_like.default}
_RANDOM = torch.Tag.nondeterministic_seeded


class Shadows:
    """Values of a capture's tensors that need no parameters. A run that is not on twins (`is_fake`) has them itself."""

    def __init__(self, is_fake: bool) -> None:
        self.is_fake = is_fake
        self.values = Identities()
        self.n_changes = 0  # how often something became known or unknown
        self._borrowed: set[int] = set()  # ids of tensors whose value is the user's own tensor

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self.values

    def set(self, tensor: Tensor, value: Tensor) -> None:
        """Give a constant or an input its value."""
        if value.is_meta or isinstance(value, Twin) or value.numel() > _LIMIT:
            return
        self.n_changes += 1
        self.values[tensor] = value
        if self.is_fake:
            self._borrowed.add(id(tensor))

    def follow(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Compute an operator on shadows, if all its tensors have one."""
        if self.is_fake and func in _UNIFORM and out.numel() <= _LIMIT:  # layer drop in training: nothing is dropped
            self.n_changes += 1
            with unset_fake_temporarily():
                self.values[out] = torch.full(out.shape, 0.999, dtype=out.dtype)
            return
        if not self._knows(args) or not self._knows(kwargs.values()) or _RANDOM in func.tags:
            if _writes(func):
                self._forget(_outputs(out))
            return
        if sum(t.numel() for t in _outputs(out)) > _LIMIT:
            return
        self.n_changes += 1
        result = self._run(func, args, kwargs) if self.is_fake else out
        for t, value in zip(parts(out), parts(result), strict=True):
            if isinstance(t, Tensor):  # twins leave out what a batch norm saves
                self.values[t] = value

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        real_args, real_kwargs = map_tensors(self._own, args), map_tensors(self._own, kwargs)
        with unset_fake_temporarily():
            return func(*real_args, **real_kwargs)

    def _own(self, tensor: Tensor) -> Tensor:
        """The value of a tensor, to be read and written; what is the user's own is copied first."""
        if id(tensor) in self._borrowed:
            self._borrowed.remove(id(tensor))
            self.values[tensor] = self.values[tensor].detach().clone()
        value: Tensor = self.values[tensor]
        return value

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
        self.n_changes += len(lost)
        for t, value in list(self.values.items()) if lost else ():
            if value.untyped_storage().data_ptr() in lost:
                del self.values[t]

    def answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator that known values decide gives, on twins."""
        if func in INDEXED:
            places = [p for t in args[1] for p in (self._positions(t) if is_mask(t) else (t,))]
            out = func(args[0], places, *args[2:], **kwargs)
        elif func is aten.masked_select.default:
            x, mask = args
            shape = torch.broadcast_shapes(x.shape, mask.shape)  # type: ignore[no-untyped-call]
            out = x.new_empty(self._n_hits(mask, shape))
        else:
            return self._twins(self._run(func, args, kwargs))
        self.follow(func, args, kwargs, out)
        return out

    def _twins(self, result: Any) -> Any:
        self.n_changes += 1
        twins = [twin(t) for t in _outputs(result)]
        self.values.update(zip(twins, _outputs(result), strict=True))
        return type(result)(twins) if isinstance(result, tuple | list) else twins[0] if twins else result

    def _n_hits(self, mask: Tensor, shape: Sequence[int]) -> int:
        with unset_fake_temporarily():
            return int(self.values[mask].expand(shape).sum())

    def _positions(self, mask: Tensor) -> list[Tensor]:
        """As many positions, axis by axis, as a mask has hits."""
        places = torch.zeros(self._n_hits(mask, mask.shape), dtype=torch.long, device=mask.device)
        return [places] * mask.dim()


@cache
def _writes(func: Any) -> bool:
    return bool(func._schema.is_mutable)


def _outputs(out: Any) -> list[Tensor]:
    return [t for t in parts(out) if isinstance(t, Tensor)]
