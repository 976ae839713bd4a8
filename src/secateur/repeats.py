"""Calls of torch's functions that came before: a capture writes them down from memory, without going through torch.

A network calls the same few functions again and again, and a plan captures it more than once. Which operators a call
records depends on the forms of its tensors, on its plain arguments and on some switches of torch's; a call that equals
another in all of them records the same operators on other values. What isn't known to be so runs again each time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.attention import TORCHS, attend
from secateur.places import INSIDE, Places
from secateur.record import NESTS, PLAIN, Value, parts
from secateur.shadows import Shadows
from secateur.templates import Record, Template, learn
from secateur.tensors import Identities
from secateur.twins import Twin

_MOST = 1 << 14  # calls that are remembered
_KNOWN: dict[Any, Template] = {}
_SILENT: set[Any] = set()  # functions that have given no tensor: those that read a shape, for example

_has_gradients, _has_autocast = torch.is_grad_enabled, torch._C._is_any_autocast_enabled
_n_modes, _n_dispatch_modes = torch._C._len_torch_function_stack, torch._C._len_torch_dispatch_stack


class Recorder(Record, Protocol):
    """The capture that calls are written down for."""

    twins: Identities
    names: dict[int, str]
    tensors: dict[str, Value]
    shadows: Shadows
    places: Places

    def enter(self, tensor: Tensor) -> Tensor:
        """The twin of one of the model's tensors."""
        ...


class Repeats(TorchFunctionMode):
    """Looks up each call of a torch function on twins, and learns it where it is new."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.switches = torch._C._get_mkldnn_enabled(), torch.are_deterministic_algorithms_enabled()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is TORCHS:
            func = attend
        if func in _SILENT or not _is_plain_state():
            return func(*args, **kwargs)
        described, values, tensors = self._describe_call(func, args, kwargs)
        if described is None:
            return func(*args, **kwargs)
        fqn, location = self.recorder.places.here()
        key = described, location if location.startswith(INSIDE) else ""
        template = _KNOWN.get(key)
        if template is not None:
            return template.write(self.recorder, values, tensors, fqn, location)
        out, template = self._watch(func, args, kwargs, values, tensors, fqn, location)
        if not any(isinstance(t, Tensor) for t in parts(out)):
            _SILENT.add(func)
        elif template is not None and len(_KNOWN) < _MOST and self._describe_call(func, args, kwargs)[0] == described:
            _KNOWN[key] = template
        return out

    def _watch(
        self,
        func: Any,
        args: Any,
        kwargs: dict[str, Any],
        values: list[Value],
        tensors: list[Tensor],
        fqn: str,
        location: str,
    ) -> tuple[Any, Template | None]:
        """Run a call, and learn what it does, where that is known to be all: it changed nothing but the record."""
        recorder = self.recorder
        for t in tensors:
            if type(t) is Tensor:
                recorder.enter(t)  # its value becomes known now, and not by the call
        n_ops, n_changes = len(recorder.ops), recorder.shadows.n_changes
        out = func(*args, **kwargs)
        ops = recorder.ops[n_ops:]
        has_own_lines = location.startswith(INSIDE)
        is_here = all(op.fqn == fqn and (has_own_lines or op.location == location) for op in ops)
        if not is_here or recorder.shadows.n_changes != n_changes:
            return out, None
        return out, learn(ops, out, values, tensors, recorder.values, has_own_lines)

    def _describe_call(self, func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, list[Value], list[Tensor]]:
        """All that decides what a call records, and its tensors with their values; None where that can't be told."""
        key = [func, self.switches, torch.get_default_dtype()]
        values: list[Value] = []
        tensors: list[Tensor] = []
        is_known = self._describe(args, key, values, tensors)
        if kwargs and is_known:
            key += kwargs
            is_known = self._describe(kwargs.values(), key, values, tensors)
        # functions may ask whether two arguments are one tensor
        is_known = is_known and (len(values) == 1 or 0 < len(values) == len(set(map(id, values))))
        return tuple(key) if is_known else None, values, tensors

    def _describe(self, args: Iterable[Any], key: list[Any], values: list[Value], tensors: list[Tensor]) -> bool:
        """Append what a call depends on to its key, and its tensors to the lists; False where it can't be told."""
        recorder = self.recorder
        all_values, known = recorder.values, recorder.shadows.values
        for a in args:
            kind = type(a)
            if kind is Twin:
                value = all_values.get(a)
                if value is None or value.number is not None:
                    return False
                key += (a.form, a in known, a.requires_grad)
            elif kind in PLAIN:
                key += (kind, str(a) if kind is float else a)  # 1, 1.0 and True are equal, but not to an operator
                continue
            elif isinstance(a, NESTS):
                kinds = list(map(type, a))
                key += (kind, *kinds)
                if PLAIN.issuperset(kinds):
                    key += map(str, a) if float in kinds else a  # and so are 0.0 and -0.0
                elif not self._describe(a, key, values, tensors):
                    return False
                continue
            elif kind is nn.Parameter or kind is Tensor:
                value = recorder.tensors.get(recorder.names.get(id(a), ""))
                if value is None or a.layout is not torch.strided:
                    return False
                is_known = kind is Tensor and ((mine := recorder.twins.get(a)) is None or mine in known)
                key += (value.shape, a.stride(), value.dtype, a.device, kind, is_known, a.requires_grad)
            else:
                return False
            values.append(value)
            tensors.append(a)
        return True


def _is_plain_state() -> bool:
    """True where nothing that a forward may switch on changes what a function does."""
    return not (_has_gradients() or _has_autocast() or _n_modes() or _n_dispatch_modes() != 1)
