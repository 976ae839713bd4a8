"""How long one forward takes.

What the numbers mean: wall-clock milliseconds of one call, eval mode, inference mode, inputs already on the
device, after `warmup` calls that are not counted; the median over `repeats` calls, with the quartiles as its spread.
Accelerators are synchronised before each reading of the clock. Runtime, shapes, dtype, device and threads are part of
the result, because numbers with other ones are not comparable. Models are compared by timing them in turn, so that a
drift of the machine (heat, neighbours) hits all of them.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from secateur.collecting import uncollected
from secateur.errors import ConfigError
from secateur.measure.modes import cpu_threads, device_of, eval_mode
from secateur.measure.runtimes import RUNTIMES, Call
from secateur.tensors import Inputs, as_call, tensors_in


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward; see the top of this file."""

    median_ms: float
    p25_ms: float
    p75_ms: float
    min_ms: float
    repeats: int
    runtime: str
    batch_size: int
    input_shapes: tuple[tuple[int, ...], ...]  # of each input tensor; of tokens, (batch, sequence)
    device: str
    dtype: str
    n_threads: int

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms [{self.p25_ms:.3f}, {self.p75_ms:.3f}] {self.setting()}"

    def setting(self) -> str:
        """Say what the time is of."""
        shapes = ", ".join("×".join(map(str, shape)) or "scalar" for shape in self.input_shapes)
        return (
            f"per batch of {self.batch_size} (inputs {shapes or 'none'}) in {self.runtime} on {self.device},"
            f" {self.dtype}, {self.n_threads} threads, {self.repeats} runs"
        )


@dataclass(frozen=True, kw_only=True)
class Speedup:
    """Quartiles of (first model's time / this model's time) within one turn; above 1, this one is faster."""

    median: float
    p25: float
    p75: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models timed in turn in one runtime, in the order in which they were given."""

    latencies: tuple[Latency, ...]
    speedups: tuple[Speedup, ...]  # over the first model, whose own are 1


@dataclass(frozen=True, kw_only=True)
class PairedLatency:
    """Two models timed in turn. `speedup` is dense time / small time within one turn; above 1, small is faster."""

    dense: Latency
    small: Latency
    speedup: float  # median over the turns
    speedup_p25: float
    speedup_p75: float


def latency(
    model: nn.Module,
    inputs: Inputs,
    *,
    runtime: str = "eager",
    repeats: int = 50,
    warmup: int = 10,
    n_threads: int | None = None,
) -> Latency:
    """Measure the time of `model(inputs)`. Training modes and the thread count are restored.

    Args:
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, on the model's device.
        runtime: what runs it: "eager", "compile" or "onnx" (see `secateur.measure.runtimes`).
        repeats, warmup: counted and uncounted calls.
        n_threads: CPU threads for the time of the measurement; None leaves them as they are.
    Raises:
        ConfigError, FileError: the runtime is missing here, or can't run this model.

    >>> timed = latency(nn.Linear(4, 2), torch.zeros(3, 4), repeats=5, warmup=1)
    >>> timed.batch_size, timed.repeats, timed.min_ms <= timed.median_ms
    (3, 5, True)
    """
    settings = {"runtime": runtime, "repeats": repeats, "warmup": warmup, "n_threads": n_threads}
    return compare_latency([model], inputs, **settings).latencies[0]  # type: ignore[arg-type]


def compare_latency(
    models: Sequence[nn.Module],
    inputs: Inputs,
    *,
    runtime: str = "eager",
    repeats: int = 50,
    warmup: int = 10,
    n_threads: int | None = None,
) -> Comparison:
    """Measure models in turn on the same inputs: first, second, …, first, second, …

    Args:
        inputs, runtime, repeats, warmup, n_threads: as for `latency`; `repeats` turns.

    >>> both = compare_latency([nn.Linear(512, 512), nn.Linear(512, 8)], torch.zeros(256, 512), repeats=9)
    >>> both.speedups[0].median, both.speedups[1].median > 1
    (1.0, True)
    """
    if repeats < 1 or warmup < 0 or (n_threads is not None and n_threads < 1):
        raise ConfigError(
            f"repeats={repeats}, warmup={warmup}, n_threads={n_threads}: repeats and n_threads must be at least 1."
        )
    with contextlib.ExitStack() as modes:
        for model in models:
            modes.enter_context(eval_mode(model))
        modes.enter_context(quiet_machine(n_threads))
        calls = [RUNTIMES[runtime](model, inputs) for model in models]
        device = device_of(models[0])
        turns = time_in_turn(calls, repeats=repeats, warmup=warmup, device=device)
        return Comparison(
            latencies=tuple(
                _summary(model, inputs, runtime, [turn[i] for turn in turns]) for i, model in enumerate(models)
            ),
            speedups=tuple(_speedup([turn[0] / turn[i] for turn in turns]) for i in range(len(models))),
        )


def paired_latency(
    dense: nn.Module,
    small: nn.Module,
    inputs: Inputs,
    *,
    repeats: int = 50,
    warmup: int = 10,
    n_threads: int | None = None,
) -> PairedLatency:
    """Measure two models alternately on the same inputs: dense, small, dense, small, ...

    Args:
        inputs, repeats, warmup, n_threads: as for `latency`; `repeats` turns of both.

    >>> pair = paired_latency(nn.Linear(512, 512), nn.Linear(512, 8), torch.zeros(256, 512), repeats=9)
    >>> pair.speedup > 1
    True
    """
    both = compare_latency([dense, small], inputs, repeats=repeats, warmup=warmup, n_threads=n_threads)
    found = both.speedups[1]
    return PairedLatency(
        dense=both.latencies[0],
        small=both.latencies[1],
        speedup=found.median,
        speedup_p25=found.p25,
        speedup_p75=found.p75,
    )


def time_in_turn(
    calls: Sequence[Call],
    *,
    repeats: int,
    warmup: int,
    device: torch.device,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> list[tuple[float, ...]]:
    """Time calls one after another, `repeats` times after `warmup` turns that are not counted; ms by turn and call."""
    for _ in range(warmup):
        for call in calls:
            call()
    return [tuple(time_ms(call, device, clock) for call in calls) for _ in range(repeats)]


def time_ms(call: Call, device: torch.device, clock: Callable[[], int] = time.perf_counter_ns) -> float:
    """Milliseconds of one call on a clock that counts nanoseconds."""
    _synchronise(device)
    start = clock()
    call()
    _synchronise(device)
    return (clock() - start) / 1e6


@contextmanager
def quiet_machine(n_threads: int | None) -> Iterator[None]:
    """Set the thread count, hold the garbage collector back and record no gradients, for a while."""
    gc.collect(1)  # what is young; to look at all that torch's modules hold takes longer than many a measurement
    with uncollected(), cpu_threads(n_threads), torch.inference_mode():
        yield


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The 25 %, 50 % and 75 % quantiles, between the values where needed.

    >>> quartiles([1.0, 2.0, 4.0])
    (1.5, 2.0, 3.0)
    """
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _speedup(ratios: Sequence[float]) -> Speedup:
    low, middle, high = quartiles(ratios)
    return Speedup(median=middle, p25=low, p75=high)


def _summary(model: nn.Module, inputs: Inputs, runtime: str, times: Sequence[float]) -> Latency:
    tensors = tensors_in(as_call(inputs))
    floats = [t.dtype for t in (*model.parameters(), *tensors) if t.is_floating_point()]
    p25, median, p75 = quartiles(times)
    return Latency(
        median_ms=median,
        p25_ms=p25,
        p75_ms=p75,
        min_ms=min(times),
        repeats=len(times),
        runtime=runtime,
        batch_size=tensors[0].shape[0] if tensors and tensors[0].ndim else 1,
        input_shapes=tuple(tuple(t.shape) for t in tensors),
        device=str(device_of(model)),
        dtype=str(floats[0]).removeprefix("torch.") if floats else "none",
        n_threads=torch.get_num_threads(),
    )
