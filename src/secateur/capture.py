"""Capture: one forward on fake tensors, recorded as a list of ATen operators.

The user's own `forward` runs once. Parameters, buffers and inputs are replaced by fake tensors at the moment an
operator reads them, so nothing is allocated or computed, a model on the meta device works, and the model's own tensors
are recognised by identity wherever its code found them: in a module, a list, a closure, or Keras' variable store.
"""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from secateur.errors import CaptureError
from secateur.frameworks.huggingface import traceable_experts
from secateur.shadows import Shadows
from secateur.tensors import Inputs, as_call, fake, fake_copy, named_tensors, on_device, tensors_in

_TORCH = f"{Path(torch.__file__).parent}/"
_TORCH_NN = f"{_TORCH}nn/"
SKIPPED = {torch.ops.prim.device.default}
_COPIES = {getattr(torch.ops.aten, name).default for name in ("clone", "alias", "detach", "lift_fresh", "_to_copy")}
_EMPTY = {f"aten::{name}" for name in ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")}
_EMPTY |= {"aten::empty.memory_format"}
_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@dataclass(frozen=True, eq=False, slots=True)
class Value:
    """A tensor that the forward read or made. `key` names a parameter, buffer, attribute or input; else it is empty."""

    index: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    source: str  # "parameter" | "buffer" | "attribute" | "input" | "constant" | "op"
    key: str = ""
    number: float | None = None  # of a constant with one element: code may have computed it from a width

    def __repr__(self) -> str:
        return f"%{self.index}{list(self.shape)}"


@dataclass(frozen=True, eq=False, slots=True)
class Op:
    """One operator call: `args` and `kwargs` as ATen got them, with a `Value` in place of each tensor."""

    index: int
    target: torch._ops.OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: tuple[Value | None, ...]
    fqn: str  # innermost module whose forward was running
    location: str  # "file.py:12", the innermost line outside torch

    @property
    def where(self) -> str:
        """The operator and where the user's code called it, for messages."""
        return f"{self.target} in '{self.fqn or 'the model'}' ({self.location})"


def settle(func: Any, out: Any) -> Any:
    """Fill what an operator left uninitialised, so that two runs agree on it."""
    if isinstance(out, Tensor) and func.name() in _EMPTY:
        out.zero_()
    return out


def is_copy(target: Any, shape_in: tuple[int, ...] | None, shape_out: tuple[int, ...] | None) -> bool:
    """True for an operator that only passes a tensor on. Torch adds and drops these by layout, size and fakeness."""
    return target in _COPIES or (target is torch.ops.aten.expand.default and shape_in == shape_out)


@dataclass(frozen=True, eq=False)
class Trace:
    """What one forward did. `tensors` holds the model's own parameters, buffers and tensor attributes by key."""

    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    tensors: dict[str, Value]
    tied: dict[str, str] = field(default_factory=dict)  # every further key of a tensor -> its first key

    @cached_property
    def unread(self) -> tuple[str, ...]:
        """Keys of the tensors that no operator read, such as those of a head used only in training."""
        read = {v.index for op in self.ops for v in pytree.tree_leaves((op.args, op.kwargs)) if isinstance(v, Value)}
        return tuple(key for key, value in self.tensors.items() if value.index not in read)

    @cached_property
    def essential(self) -> tuple[Op, ...]:
        """The operators without those that only pass a tensor on: what two records are compared by."""
        return tuple(
            op
            for op in self.ops
            if not is_copy(op.target, getattr(op.args[0] if op.args else None, "shape", None), _shape(op.outputs))
        )

    def __str__(self) -> str:
        return "\n".join(f"{', '.join(map(str, op.outputs))} = {op.target}{op.args}  # {op.fqn}" for op in self.ops)


@dataclass(frozen=True)
class Attempt:
    """The operator that was running when a forward failed, for the repair loop."""

    index: int
    fqn: str
    location: str
    error: Exception


class ForwardFailed(CaptureError):
    """The forward raised. Carries what was recorded until then, so that a repair can look at it."""

    def __init__(self, message: str, trace: Trace, attempt: Attempt) -> None:
        super().__init__(message)
        self.trace = trace
        self.attempt = attempt


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
        _module_stack(model, recorder.stack),
        fake_mode or contextlib.nullcontext(),
    ):
        args, kwargs = pytree.tree_map_only(Tensor, recorder.add_input, (args, kwargs))
        try:
            with recorder, _quiet():
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


def _shape(outputs: tuple[Value | None, ...]) -> tuple[int, ...] | None:
    return outputs[0].shape if outputs and outputs[0] is not None else None


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
        self.values = WeakIdKeyDictionary()  # tensor -> its value; a weak key, so that activations can be freed
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
        args, kwargs = pytree.tree_map_only(Tensor, self._fake, (args, kwargs))
        seen, seen_kwargs = pytree.tree_map_only(Tensor, self._lookup, (args, kwargs))
        out = self.shadows.answer(func, args) if self.fake_mode else NotImplemented
        if out is NotImplemented:
            out = settle(func, func(*args, **kwargs))
            if self.fake_mode:
                self.shadows.follow(func, args, kwargs, out)
        outs = out if isinstance(out, tuple | list) else (out,)
        if torch.Tag.inplace_view in func.tags:  # the same tensor with other axes (`unsqueeze_`): a new value
            for t in outs:
                self.values[t] = self._value(t, "op")
        if func in _COPIES and isinstance(seen[0], Value) and seen[0].number is not None and out not in self.values:
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
        has_number = tensor.numel() == 1 and not tensor.is_meta and not tensor.is_complex()
        return self._value(tensor, "constant", number=float(tensor) if has_number else None)

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
        value: Value = self.values[tensor]
        return value


def _location(frame: Any) -> str:
    """The innermost line of the forward outside torch; for code of torch itself, its innermost line in `torch.nn`."""
    inside = None
    while frame is not None and frame.f_code.co_filename != __file__:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, "<")):
            return f"{Path(name).name}:{frame.f_lineno}"
        if inside is None and name.startswith(_TORCH_NN):
            inside = f"torch/{Path(name).relative_to(_TORCH)}:{frame.f_lineno}"
        frame = frame.f_back
    return inside or "unknown line"


@contextlib.contextmanager
def plain_forward(model: nn.Module, *, is_training: bool = False) -> Iterator[None]:
    """Eval mode, no gradients, no fused encoder path inside; afterwards each module's own training flag is back.

    `nn.TransformerEncoder`'s fused eval path is one opaque operator; its plain path says the same in ATen.
    """
    flags = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.train(is_training)
    try:
        with torch.no_grad(), traceable_experts(model), _plain_rnn(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in flags:
            module.training = training


def _plain_rnn(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """oneDNN runs a whole recurrent layer as one opaque operator; without it the layer is matrix products and gates."""
    if any(isinstance(m, nn.RNNBase) for m in model.modules()):
        return _without_onednn()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    # Not `torch.backends.mkldnn.flags`, which also sets what warns on machines without an Intel GPU.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log a traceback for each operator that fails; our own error says it in a line."""
    before = _FAKE_LOG.disabled
    _FAKE_LOG.disabled = True
    try:
        yield
    finally:
        _FAKE_LOG.disabled = before


@contextlib.contextmanager
def _module_stack(model: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keep `stack[-1]` at the fqn of the innermost module whose forward is running."""

    def enter(fqn: str) -> Callable[..., None]:
        return lambda *_: stack.append(fqn)

    def leave(*_: Any) -> None:
        stack.pop()

    handles = []
    for fqn, module in model.named_modules():
        handles += [module.register_forward_pre_hook(enter(fqn), prepend=True)]
        handles += [module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _explain(error: Exception, recorder: _Recorder, model: nn.Module) -> ForwardFailed:
    """Name the module and the line of the user's code where the forward failed."""
    fqn, location = recorder.attempted
    names = {id(module): name for name, module in model.named_modules()}
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        if (owner := names.get(id(frame.f_locals.get("self")))) is not None:
            fqn = owner
        if not frame.f_code.co_filename.startswith((_TORCH, __file__)):
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
