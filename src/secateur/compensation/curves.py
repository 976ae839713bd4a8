"""Error curves: what each group costs the network at every width, once its readers are solved for again.

One pass forward and backward over the calibration data gives, for each reader, the Gram matrix of its inputs and the
curvature of the output's distance in its outputs. Eliminating units in that metric orders them; measuring the distance
itself at a few widths puts the curves of all groups on one scale.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.allocate.curves import ErrorCurve
from secateur.compensation.distance import Distance
from secateur.compensation.elimination import Problem, eliminate
from secateur.compensation.moments import DAMPING, damped
from secateur.compensation.readers import Reader, find_readers
from secateur.compensation.refit import equal_batches
from secateur.criteria.base import Curves
from secateur.criteria.elimination import Elimination
from secateur.dims.algebra import leaves
from secateur.graph import Graph, trace
from secateur.program import Program, Run
from secateur.tensors import Inputs, named_tensors, wide

log = logging.getLogger("secateur")


@dataclass
class Layer:
    """What is known of a reader's surroundings.

    gram: sum over positions of phi phi^T, mean over samples, (g, k, k) float64, damped.
    curvature: mean over positions of d d^T with d the gradient of the distance, (g, o, o) float64.
    """

    reader: Reader
    gram: Tensor
    curvature: Tensor


def error_curves(
    model: nn.Module,
    batches: Iterable[Inputs],
    config: Elimination | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Curves:
    """Find how the distance between the network's outputs and the dense ones grows as each group gets narrower.

    errors[k] = distance of the outputs when the group keeps its best k units and its readers are solved for again.

    Args:
        model: the dense network; it is not changed.
        batches: calibration inputs without labels, all of one shape; a smaller last batch is left out.
        config: see `Elimination`.
        progress: told (groups done, groups in all).
    Returns:
        A curve for every group that only weights read; the others with the operator that reads them.
    Raises:
        DataError: there are no batches.
        CaptureError: the forward can't be run operator by operator.
    Source: the metric is the Kronecker-factored Fisher of Grosse & Martens, "A Kronecker-factored approximate Fisher
        matrix for convolution layers", ICML 2016, section 3, with labels drawn from the model's own predictions; the
        elimination is `eliminate`'s.
    Differs: it serves to order units; errors are measured at `config.levels` and interpolated in log-log in between.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> found = error_curves(net, torch.randn(64, 4, generator=torch.Generator().manual_seed(0)).split(16))
    >>> list(found.curves), bool((found.curves["0 features"].errors.diff() <= 0).all())
    (['0 features'], True)
    """
    config = config or Elimination()
    given = equal_batches(batches)
    graph = trace(model, given[0], is_fake=False)
    program = Program(model, graph.trace)
    program.check(given[-1])
    readers, unsolved = find_readers(graph.trace)
    read_by, skipped = _readers_of(graph, readers, dict(unsolved))
    needed = {id(r): r for found in read_by.values() for r, _ in found}
    distance = Distance(config.distance, torch.Generator().manual_seed(config.seed))
    layers = _observe(program, list(needed.values()), given, distance, config)
    tensors = named_tensors(model)
    groups = {g.name: g for g in graph.prunable}
    curves: dict[str, ErrorCurve] = {}
    gauge = _Gauge(program, given, distance, config) if config.levels else None
    # In order of the first reader: the gauge's runs go through the network once.
    for name, found in sorted(read_by.items(), key=lambda item: item[1][0][0].op):
        problems = [p for r, c in found for p in _problems(layers[r.weight], tensors[r.weight], c)]
        curve = eliminate(problems, config.step)
        if gauge is not None:
            curve = gauge.calibrated(curve, [(layers[r.weight], c) for r, c in found])
        curves[name] = curve
        log.debug("curve of %s: %s", name, curve.errors)
        if progress is not None:
            progress(len(curves), len(read_by))
    return Curves({name: curves[name] for name in groups if name in curves}, skipped)


def _readers_of(
    graph: Graph, readers: Sequence[Reader], unsolved: Mapping[str, str]
) -> tuple[dict[str, list[tuple[Reader, Tensor]]], dict[str, str]]:
    """For each group the readers and the columns that they hold of it, and the groups that have none or not only these.

    A group that must keep the same fraction as one without a curve has none either.
    """
    tensors = graph.trace.tensors
    solvable = {r.op for r in readers}
    found: dict[str, list[tuple[Reader, Tensor]]] = {}
    reasons: dict[str, str] = {}
    others: dict[int, str] = {}
    for read in graph.solution.reads:
        if read.how == "zero" and read.op not in solvable:
            op = graph.trace.ops[read.op]
            why = next((unsolved[v.key] for v in op.values if v.key in unsolved), "no weight to solve for")
            for leaf in leaves(read.dim):
                others.setdefault(id(leaf), f"read by {op.where}: {why}")
    for g in graph.prunable:
        columns = [(r, c) for r in readers if (c := r.columns(g, tensors[r.weight].shape)) is not None]
        if id(g.leaf) in others:
            reasons[g.name] = others[id(g.leaf)]
        elif not columns:
            reasons[g.name] = "no weight reads it"
        else:
            found[g.name] = columns
    for g in graph.prunable:
        missing = [t for t in g.tied_to if t in reasons]
        if g.name in found and missing:
            del found[g.name]
            reasons[g.name] = f"keeps the same fraction as '{missing[0]}', which has no error curve"
    return found, reasons


def _observe(
    program: Program, readers: Sequence[Reader], batches: Sequence[Inputs], distance: Distance, config: Elimination
) -> dict[str, Layer]:
    """One pass forward and backward over all batches."""
    at = {r.op: r for r in readers}
    grams: dict[str, Tensor] = {}
    curvatures: dict[str, Tensor] = {}
    rows: dict[str, int] = {}
    n_samples = 0

    def add(store: dict[str, Tensor], key: str, values: Tensor) -> None:
        values = wide(values.detach()).movedim(0, 1)
        found = (values.mT @ values).double()
        store[key] = store[key] + found if key in store else found

    def watch(reader: Reader, run: Run) -> None:
        y = run[reader.y]
        if not y.requires_grad:
            y = run.values[reader.y.index] = y.requires_grad_().clone()  # no leaf: it may be written into
        y.register_hook(lambda grad: add(curvatures, reader.weight, reader.outputs(grad)))  # type: ignore[no-untyped-call]

    detached = {i: t.detach() for i, t in program.fixed.items()}
    for i, inputs in enumerate(batches):
        run = program.start(inputs)
        run.instead = detached
        with torch.enable_grad():
            for op in program.trace.ops:
                reader = at.get(op.index)
                if reader is not None:
                    seen = reader.inputs(run[reader.x].detach(), reader.thin(i, len(batches), config.max_rows))
                    add(grams, reader.weight, seen)
                    rows[reader.weight] = rows.get(reader.weight, 0) + len(seen)
                run.step(op)
                if reader is not None and reader.y in run:
                    watch(reader, run)
            out = run[program.trace.outputs[0]]
            n_samples += len(out)
            if out.requires_grad:
                torch.autograd.backward(out, distance.cotangent(out))
    layers = {}
    for r in readers:
        n_rows = r.n_rows * len(batches)  # before thinning
        gram = damped(grams[r.weight], DAMPING) * (n_rows / rows[r.weight] / n_samples)
        n = r.outputs(torch.empty(r.y.shape, device="meta")).shape[2]
        ignored = gram.new_zeros(len(gram), n, n)  # the output may not depend on it
        layers[r.weight] = Layer(r, gram, curvatures.get(r.weight, ignored) / n_rows)
    return layers


def _problems(layer: Layer, weight: Tensor, columns: Tensor) -> list[Problem]:
    """The elimination problems of a reader: one for each group of a grouped convolution."""
    w = layer.reader.matrix(weight)
    metric = w.mT @ layer.curvature @ w / 2  # second order: 1/2 d^T F d
    return [Problem(gram, m, columns) for gram, m in zip(layer.gram, metric, strict=True)]


class _Gauge:
    """Measures the distance of the outputs with single groups narrowed, on a few samples."""

    def __init__(self, program: Program, batches: Sequence[Inputs], distance: Distance, config: Elimination) -> None:
        self.program = program
        self.distance = distance
        self.levels = config.levels
        per_batch = program.trace.outputs[0].shape[0] if program.trace.outputs[0].shape else 1
        n = max(1, min(len(batches), config.n_probe // max(1, per_batch)))
        self.runs = [program.start(b) for b in batches[:n]]
        with torch.no_grad():
            self.dense = [run.fork().finish()[0] for run in self.runs]

    def calibrated(self, curve: ErrorCurve, layers: Sequence[tuple[Layer, Tensor]]) -> ErrorCurve:
        """The curve through the measured distances; between them it is the elimination's, in log-log."""
        size = len(curve.order)
        widths = sorted({max(1, round(level * size)) for level in self.levels} - {size})
        first = min(layer.reader.op for layer, _ in layers)
        for run in self.runs:
            with torch.no_grad():
                run.advance(first)
        points = {}
        for k in widths:
            points[k] = self._measure(dict(self._narrowed(layer, c, curve.order[:k]) for layer, c in layers))
        return through(curve, points)

    def _narrowed(self, layer: Layer, columns: Tensor, units: Tensor) -> tuple[int, Tensor]:
        """The weight, solved for with only these units; by the index of its value."""
        reader = layer.reader
        value = self.program.trace.tensors[reader.weight]
        weight = self.program.fixed[value.index]
        w = reader.matrix(weight)
        stays = torch.ones(w.shape[2], dtype=torch.bool)
        stays[columns.flatten()] = False
        stays[columns[units].flatten()] = True
        left = stays.nonzero().flatten()
        solved = torch.zeros_like(w)
        gram = layer.gram
        solved[:, :, left] = torch.linalg.solve(gram[:, left][:, :, left], (w @ gram[:, :, left]).mT).mT
        return value.index, reader.weight_of(solved, weight)

    def _measure(self, instead: Mapping[int, Tensor]) -> float:
        total = 0.0
        with torch.no_grad():
            for run, dense in zip(self.runs, self.dense, strict=True):
                total += self.distance(dense, run.fork(instead).finish()[0])
        return total / len(self.runs)


def through(curve: ErrorCurve, points: Mapping[int, float]) -> ErrorCurve:
    """The curve that takes the measured values at some widths: errors between are interpolated in log-log.

    Beyond the outermost points the curve keeps its own ratios. Measured values that fall as the group gets narrower are
    noise, and are levelled.

    >>> curve = ErrorCurve(torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]), torch.arange(4))
    >>> [round(e) for e in through(curve, {1: 40.0, 3: 10.0}).errors.tolist()]
    [80, 40, 20, 10, 0]
    """
    floor = 1e-12
    x = curve.errors.clamp(min=floor).log()
    widths = sorted((k for k in points if curve.errors[k] > floor), reverse=True)
    if not widths:
        return curve
    at = x[widths]  # rising
    values = torch.tensor([max(points[k], floor) for k in widths], dtype=torch.float64).log().cummax(0).values
    right = torch.searchsorted(at.contiguous(), x.contiguous()).clamp(max=len(widths) - 1)
    left = (right - 1).clamp(min=0)
    gap = at[right] - at[left]
    part = torch.where(gap > 0, (x - at[left]) / torch.where(gap > 0, gap, 1), 0).clamp(0, 1)
    inside = values[left] + part * (values[right] - values[left])
    errors = torch.where(
        x < at[0], values[0] + x - at[0], torch.where(x > at[-1], values[-1] + x - at[-1], inside)
    ).exp()
    errors[-1] = 0.0
    return ErrorCurve(errors, curve.order)
