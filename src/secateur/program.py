"""A record as a program: run on real tensors, from any operator to any other, on many batches side by side.

Calibration needs the tensors at one operator after another, of a network whose weights change on the way. Running the
whole forward again for each of n operators costs n^2; a program stops where it is asked and goes on from there, so that
all of it costs one forward.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import CaptureError
from secateur.forward import plain_forward
from secateur.record import Op, Trace, Value, settle
from secateur.tensors import Inputs, named_tensors, on_device, tensors_in

_TOLERANCE = 1e-3
"""Largest relative difference between the program and the model's own forward that rounding explains."""


class Program:
    """The operators of one real forward, with the model's own tensors: what changes in them, it reads.

    Args:
        model: any module.
        trace: its record, captured on real tensors (`is_fake=False`). Every batch has the shapes of that capture, since
            the operators' arguments may hold them.
    Raises:
        CaptureError: the forward goes on by learned values, so that its record is not what another batch would do.

    >>> from secateur.capture import capture
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> x = torch.ones(1, 2)
    >>> run = Program(net, capture(net, x, is_fake=False)).start(x)
    >>> torch.equal(run.finish()[0], net(x))  # gradients flow, as in any forward
    True
    """

    def __init__(self, model: nn.Module, trace: Trace) -> None:
        chosen = next((op.where for op in trace.ops if op.chooses_all), trace.ended_by)
        if chosen:
            raise CaptureError(
                f"The forward of {type(model).__name__} chooses by values that it computes, {chosen}, so it can't be"
                " calibrated operator by operator. Score with another criterion, without compensation."
            )
        self.model = model
        self.trace = trace
        tensors = named_tensors(model)
        self.fixed = {v.index: tensors[key] for key, v in trace.tensors.items()} | trace.constants
        self.last_use = {v.index: len(trace.ops) for v in trace.outputs}
        for op in reversed(trace.ops):
            for v in (*op.values, *filter(None, op.outputs)):
                self.last_use.setdefault(v.index, op.index)
        self.dying: dict[int, list[int]] = {}
        for index, at in self.last_use.items():
            self.dying.setdefault(at, []).append(index)

    def made_at(self, value: Value) -> int:
        """The index of the last operator that gave a value, in place ones included; -1 for one that none made."""
        return max((op.index for op in self.trace.ops if value in op.outputs), default=-1)

    def start(self, inputs: Inputs) -> Run:
        """A run that stands before the first operator."""
        given = tensors_in(on_device(self.model, inputs))
        shapes = [tuple(t.shape) for t in given]
        if shapes != (expected := [v.shape for v in self.trace.inputs]):
            raise CaptureError(f"A batch has inputs of shapes {shapes}; the first had {expected}. Give equal batches.")
        # Operators may write into their inputs, and the caller's batch stays what it is.
        return Run(self, {v.index: t.clone() for v, t in zip(self.trace.inputs, given, strict=True)})

    def check(self, inputs: Inputs) -> None:
        """Raise CaptureError where the program does not compute what the model does, on inputs other than its own."""
        args, kwargs = on_device(self.model, inputs)
        with plain_forward(self.model):
            expected = tensors_in(self.model(*args, **kwargs))
            found = self.start(inputs).finish()
        for a, b in zip(expected, found, strict=True):
            scale = float(a.abs().max()) if a.numel() else 0.0
            if not torch.allclose(a.double(), b.double(), rtol=0, atol=_TOLERANCE * max(scale, 1e-6), equal_nan=True):
                raise CaptureError(
                    f"The forward of {type(self.model).__name__} depends on the values of its inputs: recorded on one"
                    " batch, it computes something else on another. It can't be calibrated operator by operator."
                )


class Run:
    """One batch on its way through a program.

    Args:
        values: what is there already, by index of the value.
        at: the next operator.
        instead: tensors to read in place of the model's own, by index of the value.
    """

    def __init__(
        self, program: Program, values: dict[int, Tensor], at: int = 0, instead: Mapping[int, Tensor] | None = None
    ) -> None:
        self.program = program
        self.values = values
        self.at = at
        self.instead = instead or {}

    def __getitem__(self, value: Value) -> Tensor:
        for known in (self.values, self.instead, self.program.fixed):
            if value.index in known:
                return known[value.index]
        raise KeyError(value)

    def __contains__(self, value: Value) -> bool:
        return value.index in self.values or value.index in self.program.fixed

    def fork(self, instead: Mapping[int, Tensor] | None = None) -> Run:
        """A run that goes its own way from here. What is written into a tensor in place is written into its copy."""
        return Run(self.program, {i: t.clone() for i, t in self.values.items()}, self.at, instead)

    def advance(self, stop: int) -> None:
        """Run the operators before `stop`, and forget what no later one needs."""
        for op in self.program.trace.ops[self.at : stop]:
            self.step(op)

    def step(self, op: Op) -> None:
        """Run one operator."""
        self.at = op.index + 1
        out = settle(op.target, op.target(*self._real(op.args), **self._real(op.kwargs)))
        outs = out if isinstance(out, tuple | list) else (out,)
        for value, tensor in zip(op.outputs, outs, strict=True):
            if value is not None and value.index not in self.program.fixed:
                self.values[value.index] = tensor
        for index in self.program.dying.get(op.index, ()):
            self.values.pop(index, None)

    def finish(self) -> list[Tensor]:
        """Run to the end, and return the outputs."""
        self.advance(len(self.program.trace.ops))
        return [self[v] for v in self.program.trace.outputs]

    def _real(self, value: Any) -> Any:
        if isinstance(value, Value):
            return self[value]
        if isinstance(value, list | tuple):
            return type(value)([self._real(v) for v in value])
        if isinstance(value, dict):
            return {k: self._real(v) for k, v in value.items()}
        return value
