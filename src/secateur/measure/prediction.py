"""Predicted latency at any widths, from operators timed on this machine.

Every operator of the record is rebuilt with fresh tensors (`secateur.measure.operators`) and timed at a few counts of
what may shrink in it; between these, time is interpolated, and it never falls when a count grows. Operators are run one
after another through the whole network, not each many times in a row: its weights must not wait in the cache. The dense
network is timed as a whole too:

    predicted(counts) = measured dense latency * (sum of operators at counts) / (sum of operators at full widths)

What the sum leaves out, such as Python between operators, is thereby spread over the operators in proportion. Of an
operator's times the least counts, because other work on the machine only ever adds to them; on one thread of a CPU
they are processor time, which leaves out when others ran.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.dims.algebra import Dim, Leaf, count
from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.measure.cache import TimeCache
from secateur.measure.latency import Latency, latency, quiet_machine, time_in_turn
from secateur.measure.modes import device_of
from secateur.measure.operators import SyntheticOp, synthetic_ops
from secateur.measure.runtimes import Call
from secateur.tensors import Inputs

log = logging.getLogger("secateur")
FRACTIONS = (0.125, 0.25, 0.5, 1.0)
"""Of each width: where operators are timed, besides the full width. 1.0 is the widest count below the full one."""
N_SWEEPS = 2  # through all points, so that a busy minute of the machine hits none of them twice
MIN_RUNS, MAX_RUNS, PASS_MS = 4, 20, 100.0  # of all operators at one point: more where that takes little time
MAX_BYTES = 1 << 29  # of tensors of operators that are run one after another


_Points = dict[tuple[int, ...], dict[Leaf, int]]  # what each knob's axis keeps -> counts of leaves that make it so


class Grid:
    """Times of an operator: times[i, j, …] where its first knob keeps counts[0][i], its second counts[1][j], …

    >>> grid = Grid([(2, 4), (1, 3)], np.array([[1.0, 3.0], [2.0, 4.0]]))
    >>> grid([3, 2]), grid([1, 9])
    (2.5, 3.0)
    """

    def __init__(self, counts: Sequence[Sequence[int]], times: NDArray[np.float64]) -> None:
        self.counts = counts
        for axis in range(times.ndim):
            times = np.maximum.accumulate(times, axis)  # a wider operator is never called faster
        self.times = times
        self._known: dict[tuple[int, ...], float] = {}

    def __call__(self, at: Sequence[int]) -> float:
        """Interpolate along the last knob, then along the one before; beyond the grid its edge counts."""
        key = tuple(at)
        if key not in self._known:
            times = self.times
            for known, n in zip(reversed(self.counts), reversed(at), strict=True):
                rows = times.reshape(-1, len(known))
                times = np.array([np.interp(n, known, row) for row in rows]).reshape(times.shape[:-1])
            self._known[key] = float(times)
        return self._known[key]


class LatencyModel:
    """Milliseconds of one forward when each leaf keeps so many indices; see the top of this file.

    Attributes:
        dense: the measured dense network, whose setting (batch, shapes, threads, dtype, device) is that of predictions.
        sum_ms: of all operators at full widths, each timed by itself.
        n_points: calls of operators whose time is known.
        untimed: operators that could not be run by themselves; their share is spread over the others.
    """

    def __init__(
        self, dense: Latency, terms: Mapping[tuple[Grid, tuple[Dim, ...]], int], n_points: int, untimed: tuple[str, ...]
    ) -> None:
        self.dense = dense
        self.terms = terms
        self.n_points = n_points
        self.untimed = untimed
        self.sum_ms = self._sum({})

    def __call__(self, counts: Mapping[Leaf, int]) -> float:
        """Predict; it never falls when a count grows."""
        return self.dense.median_ms * self._sum(counts) / self.sum_ms

    def _sum(self, counts: Mapping[Leaf, int]) -> float:
        sizes: dict[int, int] = {}
        total = 0.0
        for (grid, axes), n in self.terms.items():
            for axis in axes:
                if id(axis) not in sizes:
                    sizes[id(axis)] = count(axis, counts)
            total += n * grid([sizes[id(axis)] for axis in axes])
        return total

    def __str__(self) -> str:
        left_out = f"; {len(self.untimed)} operators could not be timed" if self.untimed else ""
        return (
            f"latency is predicted from {self.n_points} timed calls of operators, which sum to {self.sum_ms:.3f} ms for"
            f" the dense model, measured as {self.dense}{left_out}"
        )


def predict_latency(
    model: nn.Module,
    inputs: Inputs,
    graph: Graph,
    *,
    round_to: int = 1,
    repeats: int = 20,
    n_threads: int | None = None,
) -> LatencyModel:
    """Time the operators of a graph, or read their times from the file of this machine, and the dense model once.

    Args:
        inputs: example inputs; times are for their batch and shapes.
        round_to: widths that will be asked for are multiples of it. Kernels like multiples of 8 and more, so operators
            are timed at multiples of `round_to`, and of nothing larger.
        repeats: timed forwards of the dense model.
        n_threads: CPU threads; None leaves them as they are.
    Raises:
        ConfigError: the model is on the meta device.
    """
    device = device_of(model)
    if device.type == "meta":
        raise ConfigError("A model on the meta device takes no time. Load its weights, or budget macs instead.")
    placed: Inputs = pytree.tree_map_only(Tensor, lambda t: t.to(device), inputs)
    dense = latency(model, placed, repeats=repeats, warmup=3, n_threads=n_threads)
    ops = [(op, _points(op, round_to)) for op in synthetic_ops(graph.solution)]
    with quiet_machine(n_threads):
        cache = TimeCache(device)
        untimed = _fill(cache, ops, device)
        cache.save()
    terms: Counter[tuple[Grid, tuple[Dim, ...]]] = Counter()
    grids: dict[tuple[str, ...], Grid] = {}
    for op, points in ops:
        texts = tuple(op.text(counts) for counts in points.values())
        if not untimed.keys() & set(texts):
            if texts not in grids:
                steps = [sorted(set(along)) for along in zip(*points, strict=True)]
                times = np.array([cache.times[text] for text in texts])
                grids[texts] = Grid(steps, times.reshape([len(along) for along in steps]))
            terms[grids[texts], tuple(knob.axis for knob in op.knobs)] += 1
    n_points = len({text for texts in grids for text in texts})
    return LatencyModel(dense, terms, n_points, tuple(dict.fromkeys(untimed.values())))


def _fill(cache: TimeCache, ops: Sequence[tuple[SyntheticOp, _Points]], device: torch.device) -> dict[str, str]:
    """Time all points that are not known, pass by pass: a pass runs every operator, each at one point of its grid.

    Returns:
        the texts of calls that failed, each with its operator.
    """
    untimed: dict[str, str] = {}
    n_passes = max((len(points) for _, points in ops), default=0)
    known = frozenset(cache.times)
    for i in [*range(n_passes)] * N_SWEEPS:
        settings = [(op, list(points.values())[-1 - i % len(points)]) for op, points in ops]  # full widths first
        if known.issuperset(op.text(counts) for op, counts in settings):
            continue
        batch: list[tuple[str, Call]] = []
        n_bytes = 0
        for op, counts in settings:
            text = op.text(counts)
            try:
                call = op.call(counts, device)
                call()
            except Exception as error:  # an operator on made-up values may refuse in any way
                log.debug("not timed: %s: %s", op.op.where, error)
                untimed[text] = op.op.where
                continue
            batch.append((text, call))
            n_bytes += op.n_bytes(counts)
            if n_bytes > MAX_BYTES:
                _time(batch, cache, device)
                batch, n_bytes = [], 0
        _time(batch, cache, device)
    return untimed


def _time(batch: Sequence[tuple[str, Call]], cache: TimeCache, device: torch.device) -> None:
    """Note the least time of each call, of several runs through all of them; equal texts share one time."""
    clock = time.thread_time_ns if device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter_ns
    calls = [call for _, call in batch]
    once = sum(time_in_turn(calls, repeats=1, warmup=0, device=device)[0])
    repeats = max(MIN_RUNS, min(MAX_RUNS, int(PASS_MS / max(once, 1e-3))))
    turns = time_in_turn(calls, repeats=repeats, warmup=0, device=device, clock=clock)
    for i, (text, _) in enumerate(batch):
        cache.times[text] = min(cache.times.get(text, math.inf), *(turn[i] for turn in turns))


def _points(op: SyntheticOp, round_to: int) -> _Points:
    """The grid: what each knob's axis keeps, in ascending order, with the counts of all leaves that make it so."""
    along: list[dict[int, dict[Leaf, int]]] = []
    for knob in op.knobs:
        settings = [
            {leaf: _odd_multiple(leaf.size * f, leaf.size, round_to) for leaf in knob.leaves} for f in FRACTIONS
        ]
        settings.append({leaf: leaf.size for leaf in knob.leaves})
        along.append({count(knob.axis, setting): setting for setting in settings})
    return {
        tuple(n for n, _ in chosen): {leaf: n for _, setting in chosen for leaf, n in setting.items()}
        for chosen in product(*(sorted(settings.items(), key=lambda item: item[0]) for settings in along))
    }


def _odd_multiple(most: float, size: int, round_to: int) -> int:
    """The largest odd multiple of `round_to` up to `most` and below `size`, but at least one; never above `size`.

    >>> [_odd_multiple(most, 64, 8) for most in (16, 32, 64, 4)]
    [8, 24, 56, 8]
    """
    n = int(min(most, size - 1)) // round_to
    return min(size, round_to * max(1, n - 1 + n % 2))
