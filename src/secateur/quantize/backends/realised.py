"""Latency and size of a model in a back end that computes in few bits, beside the same model in floats."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.frameworks.difference import largest_difference
from secateur.measure.latency import quartiles, quiet_machine, time_in_turn
from secateur.measure.modes import device_of, eval_mode
from secateur.measure.runtimes import Call
from secateur.registry import Registry
from secateur.tensors import Inputs, tensors_in


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A model in floats and in few bits, as calls on the same inputs."""

    runtime: str
    float_call: Call
    small_call: Call
    float_bytes: int
    small_bytes: int


@dataclass(frozen=True, kw_only=True)
class Realised:
    """What a back end made of a model.

    Attributes:
        float_ms, small_ms: medians of calls in turn.
        speedup: median, over the turns, of float time / small time.
        float_bytes, small_bytes: of the file, or of the tensors where there is none.
        max_difference: largest |float - small| over the largest |float|, over all outputs.
    """

    backend: str
    runtime: str
    float_ms: float
    small_ms: float
    speedup: float
    speedup_p25: float
    speedup_p75: float
    float_bytes: int
    small_bytes: int
    max_difference: float
    n_threads: int
    repeats: int

    def __str__(self) -> str:
        return (
            f"{self.backend}: {self.small_ms:.3f} ms against {self.float_ms:.3f} ms (x{self.speedup:.2f}"
            f" [{self.speedup_p25:.2f}, {self.speedup_p75:.2f}]), {self.small_bytes:,} bytes against"
            f" {self.float_bytes:,}; outputs differ by {self.max_difference:.1e}; {self.runtime},"
            f" {self.n_threads} threads, {self.repeats} runs"
        )


@dataclass(frozen=True)
class Unavailable:
    """A back end that can't run a model here, and why."""

    backend: str
    reason: str

    def __str__(self) -> str:
        return f"{self.backend}: not here. {self.reason}"


Backend = Callable[[nn.Module, Inputs, Sequence[Inputs]], contextlib.AbstractContextManager[Prepared]]
BACKENDS: Registry[str, Backend] = Registry("back end")
"""By name: (plain model in eval mode, inputs to time, calibration batches) -> both calls, while the context is open."""


def realise(
    model: nn.Module,
    inputs: Inputs,
    batches: Iterable[Inputs] = (),
    *,
    backends: Sequence[str] | None = None,
    repeats: int = 50,
    warmup: int = 10,
    n_threads: int | None = None,
) -> list[Realised | Unavailable]:
    """Run a model in back ends that compute in few bits, and time each in turn with the same model in floats.

    Nothing falls back: a back end that lacks a package, or a kernel for this model on this machine, says so.

    Args:
        model: any module, with codings or without; it is not changed.
        inputs: what is timed.
        batches: inputs without labels, to calibrate activations on; by default those that are timed.
        backends: keys of `BACKENDS`; by default all.
        repeats, warmup, n_threads: as for `secateur.measure.latency`.
    """
    from secateur.coding import bake

    plain = bake(model).eval()
    calibration = list(batches) or [inputs]
    found: list[Realised | Unavailable] = []
    for name in backends or sorted(BACKENDS):
        try:
            with eval_mode(plain), quiet_machine(n_threads), BACKENDS[name](plain, inputs, calibration) as prepared:
                found.append(_measure(name, prepared, repeats, warmup, device_of(plain)))
        except ConfigError as error:
            found.append(Unavailable(name, str(error)))
    return found


def _measure(name: str, prepared: Prepared, repeats: int, warmup: int, device: torch.device) -> Realised:
    calls = (prepared.float_call, prepared.small_call)
    outputs = [[torch.as_tensor(t) for t in _tensors(call())] for call in calls]
    turns = time_in_turn(calls, repeats=repeats, warmup=warmup, device=device)
    float_ms, small_ms = (quartiles([turn[i] for turn in turns])[1] for i in (0, 1))
    low, middle, high = quartiles([turn[0] / turn[1] for turn in turns])
    return Realised(
        backend=name,
        runtime=prepared.runtime,
        float_ms=float_ms,
        small_ms=small_ms,
        speedup=middle,
        speedup_p25=low,
        speedup_p75=high,
        float_bytes=prepared.float_bytes,
        small_bytes=prepared.small_bytes,
        max_difference=largest_difference(*outputs),
        n_threads=torch.get_num_threads(),
        repeats=repeats,
    )


def _tensors(outputs: Any) -> list[Any]:
    """Tensors of a module's outputs, or the arrays of a session."""
    return tensors_in(outputs) or list(outputs)


@contextlib.contextmanager
def quiet(logger: str) -> Iterator[None]:
    """Let a library advise nobody: no warnings, and of one of its loggers ("" is the root) errors alone."""
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
