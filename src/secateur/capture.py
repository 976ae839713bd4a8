"""Capture: one forward on tensors without memory, recorded as a list of ATen operators.

The user's own `forward` runs once. Parameters, buffers and inputs are replaced by their twins at the moment an
operator reads them, so nothing is allocated or computed, a model on the meta device works, and the model's own tensors
are recognised by identity wherever its code found them: in a module, a list, a closure, or Keras' variable store.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, MutableMapping
from contextlib import nullcontext
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from secateur import choices, repeats
from secateur.choices import Undecided
from secateur.errors import CaptureError, first_line
from secateur.forward import plain_forward, quiet
from secateur.places import Places
from secateur.record import (
    NESTS,
    PLAIN,
    Attempt,
    ForwardFailed,
    Op,
    Trace,
    Value,
    is_aside,
    is_constant_copy,
    parts,
    settle,
)
from secateur.repeats import Repeats
from secateur.shadows import Shadows
from secateur.tensors import Identities, Inputs, as_call, named_tensors, on_device, skeleton, tensors_in
from secateur.twins import Twin, map_tensors, run, twin

_CPU = torch.device("cpu")


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
    watch: Watcher | None = None,
) -> Trace:
    """Run `model` once on twins, in eval mode and without gradients, and record every ATen operator.

    Args:
        model: any module. Its parameters may be on any device, the meta device included, frozen or not.
        inputs: a tensor, a tuple or list of positional arguments, or a dict of keyword arguments.
            Only shapes and dtypes are used; tensors on the meta device will do.
        is_fake: False runs on the real tensors, and computes.
        is_training: True runs in training mode instead, to see what only training uses.
        watch: is told of each operator and of the result.
    Returns:
        The record. The model is left as it was found, training flags included; on twins nothing is allocated.
    Raises:
        CaptureError: the model has no parameters or gives no tensor, or its forward failed, with the line where it did.
    """
    if next(model.parameters(), None) is None:
        raise CaptureError(
            f"{type(model).__name__} has no parameters, so there is nothing to make smaller."
            " Pass the module that holds them."
        )
    tensors = named_tensors(model)
    if is_fake and any(t.is_meta for t in tensors.values()):  # torch's own checks compare devices
        model = skeleton(model)
        tensors = named_tensors(model)
    recorder = _Recorder(model, tensors, is_fake, watch)
    args, kwargs = as_call(inputs) if is_fake else on_device(model, inputs)
    args, kwargs = pytree.tree_map_only(Tensor, recorder.add_input, (args, kwargs))
    with plain_forward(model, is_training=is_training):
        try:
            with recorder, Repeats(recorder) if is_fake and watch is None else nullcontext(), quiet():
                result = model(*args, **kwargs)
        except Undecided as end:
            result = end.tensors
        except Exception as error:
            raise recorder.explain(error) from error
    if not tensors_in(result):
        raise CaptureError(
            f"The forward of {type(model).__name__} gave {type(result).__name__} with no tensor in it."
            " Pass a module whose output holds its results."
        )
    if watch is not None:
        watch.result(tensors_in(result))
    return recorder.trace(result)


@cache
def _nature(func: Any) -> tuple[bool, bool, bool]:
    """Whether an operator gives its first argument other axes, only passes it on, and may be decided by values."""
    return torch.Tag.inplace_view in func.tags, is_constant_copy(func), choices.may_decide(func)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records operators; swaps the model's real tensors for their twins as they come by."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise each call goes through a wrapper that takes as long as the dispatch itself

    def __init__(self, model: nn.Module, tensors: dict[str, Tensor], is_fake: bool, watch: Watcher | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kind = type(model).__name__
        self.is_fake = is_fake
        self.watch = watch
        self.places = Places(model, __file__, repeats.__file__)
        self.shadows = Shadows(is_fake)
        self.ended_by = ""
        self.ops: list[Op] = []
        self.n_values = 0
        self.values: MutableMapping[Tensor, Value] = Identities() if is_fake else WeakIdKeyDictionary()
        self.twins = Identities()  # by real tensor
        self.names: dict[int, str] = {}
        self.tensors: dict[str, Value] = {}
        self.tied: dict[str, str] = {}
        self.inputs: list[Value] = []
        self.constants: dict[int, Tensor] = {}
        self.alive = tensors  # ids stay unique only while their tensors live
        for key, tensor in tensors.items():
            first = self.names.setdefault(id(tensor), key)
            if first != key:
                self.tied[key] = first
            else:
                # Parameter's own isinstance is Python code
                is_parameter = type(tensor) is nn.Parameter or isinstance(tensor, nn.Parameter)
                source = "parameter" if is_parameter else "buffer"
                self.tensors[key] = value = self._value(tensor, source, key)
                if source == "parameter" or type(tensor) is Twin:
                    self.values[tensor] = value  # has no known values, so that it can be read as it is

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_aside(func, args):
            return self._aside(func, args, kwargs or {})
        fqn, location = self.places.here()
        args, seen = self._take(args)
        named, seen_named = self._take_named(kwargs) if kwargs else ({}, {})
        reshapes, copies, decides = _nature(func)
        deciders = None
        if decides:
            args, named = map_tensors(self._as_twin, args), map_tensors(self._as_twin, named)
            deciders = choices.deciders(func, args, named)
        chooses_all = deciders is not None and any(t not in self.shadows for t in deciders)
        if chooses_all:
            out = self._choose(func, args, named, f"{func} in '{fqn or 'the model'}' ({location})")
        elif deciders is not None and self.is_fake:
            out = self.shadows.answer(func, args, named)
        else:
            out = self._run(func, args, named)
        outs = parts(out)
        if reshapes:  # the same tensor with other axes (`unsqueeze_`): a new value
            for t in outs:
                self.values[t] = self._value(t, "op")
        elif copies and isinstance(seen[0], Value) and seen[0].number is not None:
            self._value_of(out, seen[0].number)
        values = tuple([self._value_of(t) if isinstance(t, Tensor) else None for t in outs])
        self.ops.append(Op(len(self.ops), func, tuple(seen), seen_named, values, fqn, location, chooses_all))
        if self.watch is not None:
            self.watch.operator(func, args, out)
        return out

    def _aside(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if not isinstance(args[0], Tensor):
            return torch.empty(*args, **kwargs)  # the same as `func`, four times faster
        return run(func, args, kwargs) if isinstance(args[0], Twin) else func(*args, **kwargs)

    def _run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.is_fake:
            if (device := kwargs.get("device")) is not None and torch.device(device).type == "meta":
                kwargs["device"] = _CPU
            out = run(func, args, kwargs)
        else:
            out = settle(func, func(*args, **kwargs))
        self.shadows.follow(func, args, kwargs, out)
        return out

    def _choose(self, func: Any, args: Any, kwargs: dict[str, Any], where: str) -> Any:
        """An operator that learned values decide: every element is chosen, or the record ends."""
        out = choices.choose_all(func, args, kwargs)
        if out is NotImplemented:
            self.ended_by = where
            raise Undecided(tensors_in(args), sys._getframe(2), __file__)
        if self.is_fake:
            out = map_tensors(lambda t: t if isinstance(t, Twin) else twin(t), out)
        self.shadows.follow(func, args, kwargs, out)
        return out

    def _take(self, args: Iterable[Any]) -> tuple[list[Any], list[Any]]:
        """Arguments with twins in place of real tensors, and with values in place of twins."""
        taken: list[Any] = []
        seen: list[Any] = []
        for a in args:
            if type(a) in PLAIN:
                taken.append(a)
                seen.append(a)
            elif isinstance(a, Tensor):
                if (value := self.values.get(a)) is None:
                    a = self.enter(a)
                    value = self._value_of(a)
                taken.append(a)
                seen.append(value)
            elif isinstance(a, NESTS) and a and type(a[0]) is not int:
                inner, inner_seen = self._take(a)
                taken.append(type(a)(inner))
                seen.append(type(a)(inner_seen))
            else:
                taken.append(a)
                seen.append(a)
        return taken, seen

    def _take_named(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        taken, seen = self._take(kwargs.values())
        return dict(zip(kwargs, taken, strict=True)), dict(zip(kwargs, seen, strict=True))

    def _as_twin(self, tensor: Tensor) -> Tensor:
        return twin(tensor) if self.is_fake and type(tensor) is not Twin else tensor

    def enter(self, tensor: Tensor) -> Tensor:
        """The twin of a tensor that has no value: one of the model, a constant, or what code made of neither."""
        if (mine := self.twins.get(tensor)) is not None:
            return mine  # type: ignore[no-any-return]
        value = self.tensors.get(self.names.get(id(tensor), ""))
        if value is None and type(tensor) is Twin:
            return tensor
        self.twins[tensor] = mine = self._as_twin(tensor)
        self.values[mine] = known = value or self._constant(tensor)
        if value is None and not self.is_fake:
            self.constants[known.index] = tensor
        self.shadows.set(mine, tensor)
        return mine

    def add_input(self, tensor: Tensor) -> Tensor:
        """Register an input of the model and return its twin."""
        mine = twin(tensor) if self.is_fake else tensor
        self.values[mine] = value = self._value(tensor, "input", f"input{len(self.inputs)}")
        self.inputs.append(value)
        self.shadows.set(mine, tensor)
        return mine

    def trace(self, result: Any = ()) -> Trace:
        """What was recorded until now."""
        outputs = [self.values[t] for t in tensors_in(result) if t in self.values]
        # An output may be a tensor of the model itself, which no operator touched.
        outputs += [self.tensors[self.names[id(t)]] for t in tensors_in(result) if id(t) in self.names]
        return Trace(
            tuple(self.ops),
            tuple(self.inputs),
            tuple(outputs),
            self.tensors,
            self.tied,
            self.ended_by,
            self.constants,
        )

    def explain(self, error: Exception) -> ForwardFailed:
        """Name the module and the line of the user's code where the forward failed."""
        fqn, location = self.places.of_error(error.__traceback__)
        shapes = ", ".join(str(list(v.shape)) for v in self.inputs)
        message = (
            f"The forward of {self.kind} failed in '{fqn or 'the model'}' ({location}) on inputs of shape"
            f" {shapes}: {type(error).__name__}: {first_line(error)}."
            " Check that it runs on these inputs; code that reads values of tensors (`.item()`, `if x > 0`)"
            " can't be captured."
        )
        return ForwardFailed(message, self.trace(), Attempt(len(self.ops), fqn, location, error))

    def _value_of(self, tensor: Tensor, number: float | None = None) -> Value:
        """The value of a tensor; a new one, where an operator has just made it."""
        value = self.values.get(tensor)
        if value is None:
            self.values[tensor] = value = self._value(tensor, "op", number=number)
        return value

    def _value(self, tensor: Tensor, source: str, key: str = "", number: float | None = None) -> Value:
        self.n_values += 1
        known: Any = tensor.form if type(tensor) is Twin else tensor  # read faster
        return Value(self.n_values - 1, tuple(known.shape), known.dtype, source, key, number)

    def _constant(self, tensor: Tensor) -> Value:
        known = tensor.numel() == 1 and not tensor.is_meta and not tensor.is_complex() and type(tensor) is not Twin
        return self._value(tensor, "constant", number=float(tensor) if known else None)
