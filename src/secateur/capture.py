"""Capture: one forward on fake tensors, recorded as a list of ATen operators.

The user's own `forward` runs once. Parameters, buffers and inputs are replaced by fake tensors at the moment an
operator reads them, so nothing is allocated or computed, a model on the meta device works, and the model's own tensors
are recognised by identity wherever its code found them: in a module, a list, a closure, or Keras' variable store.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from secateur import metadata, shadows
from secateur.errors import CaptureError
from secateur.forward import module_stack, plain_forward, quiet
from secateur.record import SKIPPED, Attempt, ForwardFailed, Op, Trace, Value, is_constant_copy, settle
from secateur.shadows import Shadows
from secateur.tensors import (
    Identities,
    Inputs,
    as_call,
    fake,
    fake_copy,
    map_tensors,
    named_tensors,
    on_device,
    tensors_in,
)

_TORCH = f"{Path(torch.__file__).parent}/"
_OURS = (__file__, metadata.__file__, shadows.__file__)
_TORCH_NN = f"{_TORCH}nn/"


class Watcher(Protocol):
    """Sees what a capture computes."""

    def operator(self, func: Any, args: Any, out: Any) -> None:
        """Called after each operator."""

    def result(self, tensors: list[Tensor]) -> None:
        """Called with the tensors of the model's output."""


def capture(
    model: nn.Module,
    inputs: Inputs,
    *,
    is_fake: bool = True,
    is_training: bool = False,
    fake_mode: FakeTensorMode | None = None,
    watch: Watcher | None = None,
) -> Trace:
    """Run `model` once on fake tensors, in eval mode and without gradients, and record every ATen operator.

    Args:
        model: any module. Its parameters may be on any device, the meta device included, frozen or not.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
            Only shapes and dtypes are used; tensors on the meta device will do.
        is_fake: False runs on the real tensors, and computes.
        is_training: True runs in training mode instead, to see what only training uses.
        fake_mode: given where the model's tensors are fake ones of this mode already.
        watch: is told of each operator and of the result.
    Returns:
        The record. The model is left as it was found, training flags included; on fake tensors nothing is allocated.
    Raises:
        CaptureError: the model has no parameters or gives no tensor, or its forward failed, with the line where it did.
    """
    if next(iter(model.parameters()), None) is None:
        raise CaptureError(
            f"{type(model).__name__} has no parameters, so there is nothing to make smaller."
            " Pass the module that holds them."
        )
    if is_fake and fake_mode is None:
        fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
        if any(p.is_meta for p in model.parameters()):  # torch's own checks compare devices
            model = fake_copy(model, fake_mode)
    recorder = _Recorder(fake_mode, named_tensors(model), watch)
    args, kwargs = as_call(inputs) if is_fake else on_device(model, inputs)
    with (
        plain_forward(model, is_training=is_training),
        module_stack(model, recorder.stack),
        fake_mode or contextlib.nullcontext(),
    ):
        args, kwargs = pytree.tree_map_only(Tensor, recorder.add_input, (args, kwargs))
        try:
            with recorder, quiet():
                result = model(*args, **kwargs)
        except Exception as error:
            raise _explain(error, recorder, model) from error
    if not tensors_in(result):
        raise CaptureError(
            f"The forward of {type(model).__name__} gave {type(result).__name__} with no tensor in it."
            " Pass a module whose output holds its results."
        )
    if watch is not None:
        watch.result(tensors_in(result))
    return recorder.trace(result)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators; swaps the model's real tensors for fake ones as they come by."""

    def __init__(self, fake_mode: FakeTensorMode | None, tensors: Mapping[str, Tensor], watch: Watcher | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake_mode = fake_mode
        self.watch = watch
        self.shadows = Shadows()
        self.stack: list[str] = [""]
        self.ops: list[Op] = []
        self.n_values = 0
        self.attempted = ("", "")
        self.values: MutableMapping[Tensor, Value] = Identities() if fake_mode else WeakIdKeyDictionary()
        self.fakes: dict[int, Tensor] = {}  # id of a real tensor -> its fake twin
        self.alive: list[Tensor] = []  # ids stay unique only while their tensors live
        self.names: dict[int, str] = {}
        self.tensors: dict[str, Value] = {}
        self.tied: dict[str, str] = {}
        self.inputs: list[Value] = []
        for key, tensor in tensors.items():
            first = self.names.setdefault(id(tensor), key)
            if first != key:
                self.tied[key] = first
                continue
            self.alive.append(tensor)
            source = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
            self.tensors[key] = self._value(tensor, source, key)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in SKIPPED:
            device = args[0].device
            return torch.device("cpu") if device.type == "meta" and self.fake_mode else device
        kwargs = kwargs or {}
        if self.fake_mode and (device := kwargs.get("device")) is not None and torch.device(device).type == "meta":
            kwargs = {**kwargs, "device": torch.device("cpu")}
        location = _location(sys._getframe(1))
        self.attempted = (self.stack[-1], location)
        args, kwargs = map_tensors(self._fake, args), map_tensors(self._fake, kwargs)
        seen, seen_kwargs = map_tensors(self._lookup, args), map_tensors(self._lookup, kwargs)
        out = self.shadows.answer(func, args) if self.fake_mode else NotImplemented
        if out is NotImplemented:
            if self.fake_mode:
                out = metadata.run(func, args, kwargs, self.fake_mode)
                self.shadows.follow(func, args, kwargs, out)
            else:
                out = settle(func, func(*args, **kwargs))
        outs = out if isinstance(out, tuple | list) else (out,)
        if torch.Tag.inplace_view in func.tags:  # the same tensor with other axes (`unsqueeze_`): a new value
            for t in outs:
                self.values[t] = self._value(t, "op")
        if (
            is_constant_copy(func)
            and isinstance(seen[0], Value)
            and seen[0].number is not None
            and out not in self.values
        ):
            self.values[out] = self._value(out, "op", number=seen[0].number)
        values = tuple(self._lookup(t) if isinstance(t, Tensor) else None for t in outs)
        self.ops.append(Op(len(self.ops), func, tuple(seen), seen_kwargs, values, self.stack[-1], location))
        if self.watch is not None:
            self.watch.operator(func, args, out)
        return out

    def add_input(self, tensor: Tensor) -> Tensor:
        """Register an input of the model and return its fake twin."""
        twin = self._fake_of(tensor)
        self.values[twin] = value = self._value(tensor, "input", f"input{len(self.inputs)}")
        self.inputs.append(value)
        self.shadows.set(twin, tensor)
        return twin

    def trace(self, result: Any = ()) -> Trace:
        outputs = [self.values[t] for t in tensors_in(result) if t in self.values]
        # An output may be a tensor of the model itself, which no operator touched.
        outputs += [self.tensors[self.names[id(t)]] for t in tensors_in(result) if id(t) in self.names]
        return Trace(tuple(self.ops), tuple(self.inputs), tuple(outputs), self.tensors, self.tied)

    def _value(self, tensor: Tensor, source: str, key: str = "", number: float | None = None) -> Value:
        self.n_values += 1
        return Value(self.n_values - 1, tuple(tensor.shape), tensor.dtype, source, key, number)

    def _constant(self, tensor: Tensor) -> Value:
        if tensor.numel() != 1 or tensor.is_meta or tensor.is_complex():
            return self._value(tensor, "constant")
        with unset_fake_temporarily():
            return self._value(tensor, "constant", number=float(tensor))

    def _fake_of(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor) or self.fake_mode is None:
            return tensor
        self.alive.append(tensor)
        self.fakes[id(tensor)] = twin = fake(tensor, self.fake_mode)
        return twin

    def _fake(self, tensor: Tensor) -> Tensor:
        if tensor in self.values or (isinstance(tensor, FakeTensor) and id(tensor) not in self.names):
            return tensor
        if (twin := self.fakes.get(id(tensor))) is None:
            twin = self._fake_of(tensor)
            key = self.names.get(id(tensor), "")
            self.values[twin] = self.tensors[key] if key else self._constant(tensor)
            if not isinstance(tensor, nn.Parameter):
                self.shadows.set(twin, tensor)
        return twin

    def _lookup(self, tensor: Tensor) -> Value:
        if tensor not in self.values:
            self.values[tensor] = self._value(tensor, "op")
        return self.values[tensor]


def _location(frame: Any) -> str:
    """The innermost line of the forward outside torch; for code of torch itself, its innermost line in `torch.nn`."""
    inside = None
    while frame is not None and frame.f_code.co_filename != __file__:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, "<")):
            return f"{name[name.rfind('/') + 1 :]}:{frame.f_lineno}"
        if inside is None and name.startswith(_TORCH_NN):
            inside = f"torch/{name[len(_TORCH) :]}:{frame.f_lineno}"
        frame = frame.f_back
    return inside or "unknown line"


def _explain(error: Exception, recorder: _Recorder, model: nn.Module) -> ForwardFailed:
    """Name the module and the line of the user's code where the forward failed."""
    fqn, location = recorder.attempted
    names = {id(module): name for name, module in model.named_modules()}
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if (owner := names.get(id(frame.f_locals.get("self")))) is not None:
            fqn = owner
        if not frame.f_code.co_filename.startswith((_TORCH, *_OURS)):
            location = f"{Path(frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    shapes = ", ".join(str(list(v.shape)) for v in recorder.inputs)
    message = (
        f"The forward of {type(model).__name__} failed in '{fqn or 'the model'}' ({location}) on inputs of shape"
        f" {shapes}: {type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}."
        " Check that it runs on these inputs; code that reads values of tensors (`.item()`, `if x > 0`)"
        " can't be captured."
    )
    return ForwardFailed(message, recorder.trace(), Attempt(len(recorder.ops), fqn, location, error))
