"""Models side by side: what they take on paper, their time in each runtime, and how much of the savings is realised.

`realised` is the speedup over the first model divided by the ratio of MACs: 1 where time falls as MACs do. Where it is
low, two reasons are looked for by measuring: widths that kernels don't like, and zeros that stay in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from secateur.dims.algebra import Leaf
from secateur.errors import SecateurError
from secateur.graph import Graph, trace
from secateur.measure.latency import Latency, Speedup, compare_latency, quiet_machine, time_in_turn
from secateur.measure.modes import device_of, eval_mode
from secateur.measure.operators import SyntheticOp, synthetic_ops
from secateur.measure.size import count_parameters, size_bytes
from secateur.tensors import Inputs

LIKED = 8  # kernels like widths that are multiples of it
LEAST_REALISED = 0.7  # of the MAC ratio; below it, there is a warning
NOTICED = 0.05  # a difference of that part is worth a warning


@dataclass(frozen=True, kw_only=True)
class Size:
    """What a model takes on paper. MACs and activations are of the inputs that were given, whole batch."""

    params: int
    macs: int
    size_bytes: int
    activation_bytes: int
    uncounted: tuple[str, ...]  # operators whose MACs are not known


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What `measure_models` found. Tuples are in the order of the models.

    Attributes:
        latencies: by runtime.
        speedups: by runtime, of each model over the first.
        mac_ratios: MACs of the first model over those of each.
        not_run: runtimes that could not run, with the reason.
        warnings: savings that are not realised, and measured reasons.
    """

    names: tuple[str, ...]
    sizes: tuple[Size, ...]
    latencies: dict[str, tuple[Latency, ...]]
    speedups: dict[str, tuple[Speedup, ...]]
    mac_ratios: tuple[float, ...]
    not_run: dict[str, str]
    warnings: tuple[str, ...]

    def realised(self, runtime: str) -> tuple[float, ...]:
        """Speedup over MAC ratio, for each model."""
        return tuple(s.median / ratio for s, ratio in zip(self.speedups[runtime], self.mac_ratios, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {**asdict(self), "realised": {runtime: self.realised(runtime) for runtime in self.speedups}}


def measure_models(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    runtimes: Sequence[str] = ("eager",),
    repeats: int = 50,
    n_threads: int | None = None,
) -> Measurement:
    """Measure models by name on the same inputs; the first is what the others are compared with.

    Args:
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, on the models' device.
        runtimes: see `secateur.measure.runtimes`. One that can't run here or can't run a model is in `not_run`.
        repeats, n_threads: as for `latency`.
    Raises:
        CaptureError: a forward fails on these inputs.

    >>> import torch
    >>> nets = {"wide": nn.Sequential(nn.Linear(64, 64)), "narrow": nn.Sequential(nn.Linear(64, 32))}
    >>> found = measure_models(nets, torch.zeros(2, 64), repeats=3)
    >>> found.mac_ratios, list(found.latencies), found.not_run
    ((1.0, 2.0), ['eager'], {})
    """
    graphs = [trace(model, inputs) for model in models.values()]
    sizes = tuple(_size(model, graph) for model, graph in zip(models.values(), graphs, strict=True))
    latencies, speedups, not_run = {}, {}, {}
    for runtime in runtimes:
        try:
            both = compare_latency(list(models.values()), inputs, runtime=runtime, repeats=repeats, n_threads=n_threads)
        except SecateurError as error:
            not_run[runtime] = str(error)
            continue
        latencies[runtime], speedups[runtime] = both.latencies, both.speedups
    ratios = tuple(sizes[0].macs / size.macs if size.macs else 1.0 for size in sizes)
    warnings: list[str] = []
    for i, (name, model) in enumerate(models.items()):
        if i > 0:
            fast = {runtime: found[i].median for runtime, found in speedups.items()}
            warnings += [f"{name}: {text}" for text in _shortfalls(ratios[i], fast)]
            warnings += [f"{name}: {text}" for text in _zeros(model, ratios[i], fast)]
            warnings += [f"{name}: {text}" for text in _odd_widths(model, graphs[i], n_threads)]
    return Measurement(
        names=tuple(models),
        sizes=sizes,
        latencies=latencies,
        speedups=speedups,
        mac_ratios=ratios,
        not_run=not_run,
        warnings=tuple(warnings),
    )


def _size(model: nn.Module, graph: Graph) -> Size:
    cost = graph.cost()
    return Size(
        params=count_parameters(model),
        macs=cost.macs,
        size_bytes=size_bytes(model),
        activation_bytes=cost.activation_bytes,
        uncounted=graph.uncounted,
    )


def _shortfalls(mac_ratio: float, speedups: Mapping[str, float]) -> list[str]:
    return [
        f"{mac_ratio:.2f}x fewer MACs, but {speedup:.2f}x as fast in {runtime}: {speedup / mac_ratio:.2f} of the ratio."
        for runtime, speedup in speedups.items()
        if mac_ratio > 1 + NOTICED and speedup / mac_ratio < LEAST_REALISED
    ]


def _zeros(model: nn.Module, mac_ratio: float, speedups: Mapping[str, float]) -> list[str]:
    """A warning for weights that are masked where no runtime is faster for it."""
    weights = [p.detach() for p in model.parameters() if p.dim() > 1]
    n_zeros, n = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    if mac_ratio > 1 + NOTICED or n_zeros <= NOTICED * n:
        return []
    return [
        f"{n_zeros / n:.0%} of the weights are zero and stay in place, which brings nothing in {runtime}:"
        f" {speedup:.2f}x as fast. Remove whole units instead."
        for runtime, speedup in speedups.items()
        if speedup < 1 + NOTICED
    ]


def _odd_widths(model: nn.Module, graph: Graph, n_threads: int | None) -> list[str]:
    """A warning where the operators would be faster at wider widths, as measured in eager PyTorch."""
    wider = {g.leaf: -(-g.size // LIKED) * LIKED for g in graph.groups if g.size % LIKED and g.size > LIKED}
    wider = {leaf: n for leaf, n in wider.items() if leaf.frozen is None}
    ops = [op for op in synthetic_ops(graph.solution) if _turns(op, wider)]
    if not ops:
        return []
    device = device_of(model)
    with eval_mode(model), quiet_machine(n_threads):
        calls = [op.call(counts, device) for counts in ({}, wider) for op in ops]
        turns = time_in_turn(calls, repeats=15, warmup=2, device=device)
    least = [min(turn[i] for turn in turns) for i in range(len(calls))]
    now, then = sum(least[: len(ops)]), sum(least[len(ops) :])
    if then > (1 - NOTICED) * now:
        return []
    return [
        f"{len(wider)} widths are no multiples of {LIKED}. Rounded up, the operators that read them would take"
        f" {then:.3f} ms instead of {now:.3f} ms in eager, as measured. Prune with round_to={LIKED}."
    ]


def _turns(op: SyntheticOp, wider: Mapping[Leaf, int]) -> bool:
    return any(leaf in wider for knob in op.knobs for leaf in knob.leaves)
