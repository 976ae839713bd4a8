"""Following a real run along a record: which operator of the trace is this call, and what are its tensors?

A record knows the dims of every tensor but no values; a real run has values and no dims. `Follower` walks both in step,
so that whoever watches sees the values of any operator, on whatever code the user's forward is made of.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from secateur.choices import Undecided, choose_all
from secateur.errors import CaptureError
from secateur.forward import plain_forward
from secateur.record import Op, Trace, is_aside, is_constant_copy, is_copy, is_same, settle
from secateur.tensors import Inputs, on_device, tensors_in

Watch = Callable[[Op, tuple[Any, ...], dict[str, Any], Any], None]
"""Called after an operator with (its record, args, kwargs, output). Tensors may be written over later: copy to keep."""


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Pairs each call of a real forward with its operator in a record.

    Choices by learned values are taken as the record took them, and the run ends where the record does (see
    `secateur.choices`). `problem` says where the run first left the record; from there on calls are made, not paired.
    """

    def __init__(self, trace: Trace) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._ops = trace.essential
        self._ended_by = trace.ended_by
        self.place = -1  # of the latest paired call in the essential record
        self.problem = ""

    def call(self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Make the call of an operator, and return its output. Subclasses look here."""
        return choose_all(func, args, kwargs) if op.chooses_all else settle(func, func(*args, **kwargs))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if is_constant_copy(func) or is_aside(func, args):
            return func(*args, **kwargs)
        op = self._ops[self.place + 1] if self.place + 1 < len(self._ops) else None
        if op is None and self._ended_by.startswith(str(func)):
            raise Undecided(tensors_in(args), sys._getframe(1), __file__)
        if op is None or not is_same(op.target, func):
            out = func(*args, **kwargs)
            if not passes(func, args, out):
                expected = "nothing" if op is None else op.where
                self.problem = self.problem or f"the real run calls {func} where the record has {expected}"
            return out
        self.place += 1
        return self.call(op, func, args, kwargs)


class _Observer(Follower):  # type: ignore[no-untyped-call]
    def __init__(self, trace: Trace, watch: Watch, only: Collection[int] | None) -> None:
        super().__init__(trace)
        self.watch = watch
        self.only = only

    def call(self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().call(op, func, args, kwargs)
        if self.only is None or op.index in self.only:
            self.watch(op, args, kwargs, out)
        return out


def run(model: nn.Module, inputs: Inputs, mode: AbstractContextManager[Any]) -> list[Tensor]:
    """The tensors that a model gives, run in eval mode under a dispatch mode, on its own device.

    Where the mode ends the run, those that the code could still read.
    """
    args, kwargs = on_device(model, inputs)
    with plain_forward(model), mode:
        try:
            return tensors_in(model(*args, **kwargs))
        except Undecided as end:
            return end.tensors


def observe(
    model: nn.Module, trace: Trace, batches: Iterable[Inputs], watch: Watch, only: Collection[int] | None = None
) -> None:
    """Run a model on batches, in eval mode and without gradients, and show each operator's tensors to `watch`.

    Args:
        model: the network that `trace` records; it is not changed.
        batches: model inputs without labels; their batch size need not be that of the record.
        watch: called after each operator as (op, args, kwargs, out).
        only: indices of the operators to show; None shows all.
    Raises:
        CaptureError: the run takes another path than the record.

    >>> import torch
    >>> from secateur.graph import trace
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> seen = []
    >>> x = torch.zeros(1, 2)
    >>> observe(net, trace(net, x).trace, [x], lambda op, args, kwargs, out: seen.append(op.target.overloadpacket))
    >>> [str(name) for name in seen]
    ['aten.t', 'aten.addmm', 'aten.relu']
    """
    for inputs in batches:
        observer = _Observer(trace, watch, only)
        run(model, inputs, observer)
        if observer.problem:
            raise CaptureError(
                f"On real data, {observer.problem}. The forward chooses its operators by the values of its inputs,"
                " which calibration can't follow."
            )


def passes(func: Any, args: Any, out: Any) -> bool:
    """True for a call that is no part of the essential record."""
    shapes = (getattr(t, "shape", None) for t in (args[0] if args else None, out))
    return is_copy(func, *shapes)
