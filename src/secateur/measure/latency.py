"""How long one forward takes.

What the numbers mean: wall-clock milliseconds of one call, eval mode, inference mode, inputs already on the
device, after `warmup` calls that are not counted; the median over `repeats` calls, with the quartiles as its spread.
Accelerators are synchronised before each reading of the clock. Batch, dtype, device and threads are part of the result,
because numbers with other ones are not comparable. Two models are compared by `paired_latency`, which alternates them,
so that a drift of the machine (heat, neighbours) hits both.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.measure.modes import device_of, eval_mode

Inputs = Tensor | tuple[Any, ...] | dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Time of one forward; see the top of this file."""

    median_ms: float
    p25_ms: float
    p75_ms: float
    min_ms: float
    repeats: int
    batch_size: int
    device: str
    dtype: str
    n_threads: int

    def __str__(self) -> str:
        return (
            f"{self.median_ms:.3f} ms [{self.p25_ms:.3f}, {self.p75_ms:.3f}] per batch of {self.batch_size}"
            f" on {self.device}, {self.dtype}, {self.n_threads} threads, {self.repeats} runs"
        )


@dataclass(frozen=True, kw_only=True)
class PairedLatency:
    """Two models timed in turn. `speedup` is dense time / small time within one turn; above 1, small is faster."""

    dense: Latency
    small: Latency
    speedup: float  # median over the turns
    speedup_p25: float
    speedup_p75: float


def latency(
    model: nn.Module, inputs: Inputs, *, repeats: int = 50, warmup: int = 10, n_threads: int | None = None
) -> Latency:
    """Measure the time of `model(inputs)`. Training modes and the thread count are restored.

    Args:
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, on the model's device.
        repeats, warmup: counted and uncounted calls.
        n_threads: CPU threads for the time of the measurement; None leaves them as they are.

    >>> timed = latency(nn.Linear(4, 2), torch.zeros(3, 4), repeats=5, warmup=1)
    >>> timed.batch_size, timed.repeats, timed.min_ms <= timed.median_ms
    (3, 5, True)
    """
    _check(repeats, warmup, n_threads)
    with eval_mode(model), _quiet_machine(n_threads):
        for _ in range(warmup):
            _time_ms(model, inputs)
        times = [_time_ms(model, inputs) for _ in range(repeats)]
        return _summary(model, inputs, times)


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
    _check(repeats, warmup, n_threads)
    with eval_mode(dense), eval_mode(small), _quiet_machine(n_threads):
        for _ in range(warmup):
            _time_ms(dense, inputs)
            _time_ms(small, inputs)
        turns = [(_time_ms(dense, inputs), _time_ms(small, inputs)) for _ in range(repeats)]
        ratios = _quartiles([a / b for a, b in turns])
        return PairedLatency(
            dense=_summary(dense, inputs, [a for a, _ in turns]),
            small=_summary(small, inputs, [b for _, b in turns]),
            speedup=ratios[1],
            speedup_p25=ratios[0],
            speedup_p75=ratios[2],
        )


def _check(repeats: int, warmup: int, n_threads: int | None) -> None:
    if repeats < 1 or warmup < 0 or (n_threads is not None and n_threads < 1):
        raise ConfigError(
            f"repeats={repeats}, warmup={warmup}, n_threads={n_threads}: repeats and n_threads must be at least 1."
        )


@contextmanager
def _quiet_machine(n_threads: int | None) -> Iterator[None]:
    """Set the thread count, hold the garbage collector back and record no gradients, for a while."""
    threads_before, was_collecting = torch.get_num_threads(), gc.isenabled()
    gc.collect()
    gc.disable()
    if n_threads is not None:
        torch.set_num_threads(n_threads)
    try:
        with torch.inference_mode():
            yield
    finally:
        torch.set_num_threads(threads_before)
        if was_collecting:
            gc.enable()


def _time_ms(model: nn.Module, inputs: Inputs) -> float:
    device = device_of(model)
    _synchronise(device)
    start = time.perf_counter_ns()
    if isinstance(inputs, Mapping):
        model(**inputs)
    elif isinstance(inputs, tuple):
        model(*inputs)
    else:
        model(inputs)
    _synchronise(device)
    return (time.perf_counter_ns() - start) / 1e6


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _summary(model: nn.Module, inputs: Inputs, times: list[float]) -> Latency:
    parts = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    tensors = [part for part in parts if isinstance(part, Tensor)]
    floats = [t.dtype for t in (*model.parameters(), *tensors) if t.is_floating_point()]
    p25, median, p75 = _quartiles(times)
    return Latency(
        median_ms=median,
        p25_ms=p25,
        p75_ms=p75,
        min_ms=min(times),
        repeats=len(times),
        batch_size=tensors[0].shape[0] if tensors and tensors[0].ndim else 1,
        device=str(device_of(model)),
        dtype=str(floats[0]).removeprefix("torch.") if floats else "none",
        n_threads=torch.get_num_threads(),
    )
