"""Calls of torch's functions and layers that came before: a capture writes them down from memory, without torch.

A network calls the same few functions again and again, and a plan captures it more than once. Which operators a call
records depends on the forms of its tensors, on its plain arguments and on some switches of torch's; a call that equals
another in all of them records the same operators on other values. What isn't known to be so runs again each time.
"""

from __future__ import annotations

import marshal
from collections.abc import Callable, Iterable
from threading import get_ident
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules import module as nn_module
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

_LAYERS = "torch.nn.modules."
_BASE = tuple(nn.Module().__dict__)  # what every module holds: first its mode, parameters and buffers, then hooks
_N_TENSORS = 3

_any_hook_of_all: Callable[[], bool] = nn_module._has_any_global_hook
_AsTheyAre = torch._C.DisableTorchFunction
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
    """Looks up each call of a torch function on twins, or of one of torch's own layers, and learns it where it is new.

    A layer is a function too, of its input, its tensors and its settings, and one that takes torch many steps.
    """

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.switches = torch._C._get_mkldnn_enabled(), torch.are_deterministic_algorithms_enabled()

    def __enter__(self) -> Repeats:
        super().__enter__()  # type: ignore[no-untyped-call]
        self.call: Callable[..., Any] = nn.Module._call_impl
        thread = get_ident()

        def call_layer(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if kwargs or not type(layer).__module__.startswith(_LAYERS) or get_ident() != thread:
                return self.call(layer, *args, **kwargs)
            return self._layer(layer, args)

        nn.Module._call_impl = call_layer  # type: ignore[method-assign,assignment]
        return self

    def __exit__(self, *error: Any) -> None:
        nn.Module._call_impl = self.call  # type: ignore[method-assign]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is TORCHS:
            func = attend
        if func in _SILENT or not _is_plain_state(0):
            return func(*args, **kwargs)
        return self._repeat(func, args, kwargs, lambda: func(*args, **kwargs))

    def _layer(self, layer: nn.Module, args: tuple[Any, ...]) -> Any:
        fqn = self.recorder.places.names.get(id(layer))
        head = _layer_head(layer) if fqn is not None and _is_plain_state(1) else None
        if head is None:
            return self.call(layer, *args)
        given = (*args, *layer._parameters.values(), *layer._buffers.values())
        return self._repeat(head, given, {}, lambda: self.call(layer, *args), fqn)

    def _repeat(
        self, head: Any, args: Any, kwargs: dict[str, Any], run: Callable[[], Any], fqn: str | None = None
    ) -> Any:
        """What a call gives: from memory, or by running it; `head` says which call it is, `fqn` in which module."""
        described, values, tensors = self._describe_call(head, args, kwargs)
        if described is None:
            return run()
        fqn, location = self.recorder.places.here(fqn)
        key = described, location if location.startswith(INSIDE) else ""
        template = _KNOWN.get(key)
        if template is not None:
            return template.write(self.recorder, values, tensors, fqn, location)
        out, template = self._watch(run, values, tensors, fqn, location)
        if not any(isinstance(t, Tensor) for t in parts(out)):
            _SILENT.add(head)
        elif template is not None and len(_KNOWN) < _MOST and self._describe_call(head, args, kwargs)[0] == described:
            _KNOWN[key] = template
        return out

    def _watch(
        self, run: Callable[[], Any], values: list[Value], tensors: list[Tensor], fqn: str, location: str
    ) -> tuple[Any, Template | None]:
        """Run a call, and learn what it does, where that is known to be all: it changed nothing but the record."""
        recorder = self.recorder
        with _AsTheyAre():
            for t in tensors:
                if type(t) is Tensor:
                    recorder.enter(t)  # its value becomes known now, and not by the call
        n_ops, n_changes = len(recorder.ops), recorder.shadows.n_changes
        out = run()
        ops = recorder.ops[n_ops:]
        has_own_lines = location.startswith(INSIDE)
        is_here = all(op.fqn == fqn and (has_own_lines or op.location == location) for op in ops)
        if not is_here or recorder.shadows.n_changes != n_changes:
            return out, None
        with _AsTheyAre():
            return out, learn(ops, out, values, tensors, recorder.values, has_own_lines)

    def _describe_call(self, head: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, list[Value], list[Tensor]]:
        """All that decides what a call records, and its tensors with their values; None where that can't be told."""
        key = [head, self.switches, torch.get_default_dtype()]
        values: list[Value] = []
        tensors: list[Tensor] = []
        with _AsTheyAre():  # tensors are looked at, and no call is seen
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


def _is_plain_state(n_modes: int) -> bool:
    """True where nothing that a forward may switch on changes what a function does, in so many function modes."""
    return not (_has_gradients() or _has_autocast() or _n_modes() != n_modes or _n_dispatch_modes() != 1)


def _layer_head(layer: nn.Module) -> Any:
    """All that decides what a layer does but its tensors; None where it holds more than numbers and strings.

    That is the case where it has hooks or submodules, or a forward of its own.
    """
    held = layer.__dict__
    names, values = tuple(held), tuple(held.values())
    n = len(_BASE)
    if names[:n] != _BASE or any(values[_N_TENSORS:n]) or _any_hook_of_all():
        return None
    try:
        settings = marshal.dumps((values[0], values[n:]), 2)  # exact: 1, 1.0 and True are not the same
    except ValueError:
        return None
    return type(layer), type(layer).forward, names[n:], settings, tuple(layer._parameters), tuple(layer._buffers)
