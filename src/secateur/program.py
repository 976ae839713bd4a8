"""A record as a program: run on real tensors, from any operator to any other, on many batches side by side.

Calibration needs the tensors at one operator after another, of a network whose weights change on the way. Running the
whole forward again for each of n operators costs n^2; a program stops where it is asked and goes on from there, so that
all of it costs one forward.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence, Set
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from secateur.attention import ATTENTION
from secateur.errors import CaptureError
from secateur.folding import find_folds, folded
from secateur.forward import plain_forward
from secateur.record import Op, Trace, Value, found_in, parts, settle
from secateur.tensors import Inputs, named_tensors, on_device, tensors_in

_NAMES = ("convolution", "mm", "addmm", "bmm", "baddbmm", "linear", "mv", "addmv", "dot", "vdot", "_trilinear")
_PRODUCTS = {ATTENTION, *(getattr(torch.ops.aten, name).default for name in _NAMES)}
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
        self.written = _written(trace)
        self.derived = _derived(trace, self.fixed.keys() - self.written, self.written)
        self.last_use = {v.index: len(trace.ops) for v in trace.outputs}
        for op in reversed(trace.ops):
            for v in (*op.values, *filter(None, op.outputs)):
                self.last_use.setdefault(v.index, op.index)
        self.dying: dict[int, list[int]] = {}
        for index, at in self.last_use.items():
            self.dying.setdefault(at, []).append(index)

    @cached_property
    def folds(self) -> dict[int, Op]:
        """See `secateur.folding`."""
        return find_folds(self.trace)

    def made_at(self, value: Value) -> int:
        """The index of the last operator that gave a value, in place ones included; -1 for one that none made."""
        return max((op.index for op in self.trace.ops if value in op.outputs), default=-1)

    def is_derived(self, op: Op) -> bool:
        """True for an operator that is run where its result is read."""
        return any(v is not None and v.index in self.derived for v in op.outputs)

    def start(self, inputs: Inputs) -> Run:
        """A run that stands before the first operator."""
        given = tensors_in(on_device(self.model, inputs))
        shapes = [tuple(t.shape) for t in given]
        if shapes != (expected := [v.shape for v in self.trace.inputs]):
            raise CaptureError(f"A batch has inputs of shapes {shapes}; the first had {expected}. Give equal batches.")
        own = {i: t.clone() for i, t in self.fixed.items() if i in self.written}  # the model's stay as they are
        return Run(self, own | {v.index: t for v, t in zip(self.trace.inputs, given, strict=True)})

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
        dtype: in which products and convolutions of float32 are computed, where it isn't that. What follows goes on
            in it, or in the wider type of two, as under autocast, which knows no recorded operators.
        folds: batch norms to compute within the convolutions before them, by index of the convolution.
    """

    def __init__(
        self,
        program: Program,
        values: dict[int, Tensor],
        at: int = 0,
        instead: Mapping[int, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        folds: Mapping[int, Op] | None = None,
    ) -> None:
        self.program = program
        self.values = values
        self.at = at
        self.instead = instead or {}
        self.dtype = dtype
        self.folds = folds or {}
        self.within = {norm.index for norm in self.folds.values()}

    def __getitem__(self, value: Value) -> Tensor:
        for known in (self.values, self.instead, self.program.fixed):
            if value.index in known:
                return known[value.index]
        op = self.program.derived[value.index]
        return self._outputs(op)[op.outputs.index(value)]

    def __contains__(self, value: Value) -> bool:
        return any(value.index in known for known in (self.values, self.program.fixed, self.program.derived))

    def fork(
        self,
        instead: Mapping[int, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        folds: Mapping[int, Op] | None = None,
    ) -> Run:
        """A run that goes its own way from here, on copies of its tensors that share memory as the tensors do.

        So what is written in place, through a view or not, reaches what it would have reached. Gradients stop here.
        """
        values = {i: t.detach() for i, t in self.values.items()}
        return Run(self.program, copy.deepcopy(values), self.at, instead, dtype, folds)

    def advance(self, stop: int) -> None:
        """Run the operators before `stop`, and forget what no later one needs."""
        for op in self.program.trace.ops[self.at : stop]:
            self.step(op)

    def step(self, op: Op) -> None:
        """Run one operator."""
        self.at = op.index + 1
        if op.index in self.within or self.program.is_derived(op):
            return
        outputs = op.outputs if op.index not in self.folds else self.folds[op.index].outputs[:1]
        for value, tensor in zip(outputs, self._outputs(op), strict=True):
            if value is not None and value.index not in self.program.fixed:
                self.values[value.index] = tensor
        for index in self.program.dying.get(op.index, ()):
            self.values.pop(index, None)

    def finish(self) -> list[Tensor]:
        """Run to the end, and return the outputs."""
        self.advance(len(self.program.trace.ops))
        return [self[v] for v in self.program.trace.outputs]

    def _outputs(self, op: Op) -> Sequence[Tensor]:
        norm = self.folds.get(op.index)
        args = self._real(op.args) if norm is None else folded(op, norm, self._real)
        kwargs = self._real(op.kwargs)
        if self.dtype is not None and op.target in _PRODUCTS:
            args = tuple([a.to(self.dtype) if isinstance(a, Tensor) and a.dtype == torch.float32 else a for a in args])
        return parts(settle(op.target, op.target(*args, **kwargs)))

    def _real(self, value: Any) -> Any:
        if isinstance(value, Value):
            return self[value]
        if isinstance(value, list | tuple):
            return type(value)([self._real(v) for v in value])
        if isinstance(value, dict):
            return {k: self._real(v) for k, v in value.items()}
        return value


def _written(trace: Trace) -> set[int]:
    """The values that an operator writes into, be it through a view."""
    found: set[int] = set()
    for op in reversed(trace.ops):
        if op.target._schema.is_mutable or any(v.index in found for v in op.outputs if v is not None):
            found.update(v.index for v in _shared(op))
    return found


def _derived(trace: Trace, constant: Set[int], written: Set[int]) -> dict[int, Op]:
    """By value: the operators that make tensors of the model's own ones alone, such as the transpose of a weight.

    They are run where their result is read, so that it always follows the weights. What is written into is not derived.
    """
    found: dict[int, Op] = {}
    for op in trace.ops:
        made = [v.index for v in op.outputs if v is not None]
        is_pure = torch.Tag.nondeterministic_seeded not in op.target.tags and written.isdisjoint(made)
        if is_pure and op.values and all(v.index in found or v.index in constant for v in op.values):
            found.update(dict.fromkeys(made, op))
    return found


def _shared(op: Op) -> list[Value]:
    """The arguments that the operator's result is a view of, or that it writes into."""
    arguments = op.target._schema.arguments
    given = [*op.args, *(op.kwargs[a.name] for a in arguments[len(op.args) :] if a.name in op.kwargs)]
    return found_in([x for a, x in zip(arguments, given, strict=False) if a.alias_info is not None], Value)
