"""Compensation: after pruning, every weight that reads an activation is solved for again, in order of execution.

Inputs come from the pruned network, whose earlier weights are solved already; targets from the dense one. Where an
output is added to a stream, its target also makes up for what the stream has drifted. Then the weights between two cuts
of the network are fitted together (`reconstruct`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from secateur.compensation.bases import Basis
from secateur.compensation.config import CompensateConfig
from secateur.compensation.distance import distance
from secateur.compensation.moments import Moments, fit
from secateur.compensation.norms import rebase_norms_
from secateur.compensation.pair import Lockstep, Pair
from secateur.compensation.readers import Reader, find_readers, find_users
from secateur.compensation.reconstruct import Reconstructed, fit_, n_fitted, reconstruct_
from secateur.compensation.segments import Segment, find_segments, whole
from secateur.compensation.streams import Stream, find_stream
from secateur.errors import DataError
from secateur.measure.modes import device_of
from secateur.plans import Plan
from secateur.tensors import Inputs, as_call, named_tensors, tensors_in

_N_FOLDS = 2
_N_MEASURED = 16
"""Batches that norms' statistics are measured on at last."""


@dataclass(frozen=True)
class Refit:
    """What compensation did to a weight: its layer's squared error over that of the target, before and after."""

    weight: str
    before: float
    after: float


@dataclass(frozen=True)
class CompensateReport:
    """What compensation did.

    Attributes:
        layers: each weight that was solved for.
        segments: each part of the network whose weights were then fitted together.
        skipped: weights that were left as they are, with the reason.
    """

    layers: tuple[Refit, ...]
    segments: tuple[Reconstructed, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        worst = max(self.layers, key=lambda r: r.after, default=None)
        lines = [f"{len(self.layers)} weights solved for again"]
        if worst is not None:
            lines[0] += f"; the largest relative error left is {worst.after:.2g}, in '{worst.weight}'"
        if self.segments:
            mean = sum(s.after / max(s.before, 1e-30) for s in self.segments) / len(self.segments)
            lines.append(f"{len(self.segments)} segments fitted together: error times {mean:.2f} on average")
        if self.skipped:
            lines.append(f"left as they are: {len(self.skipped)}, the first: {' '.join(self.skipped[0])}")
        return "\n".join(lines)


def compensate_(
    model: nn.Module,
    small: nn.Module,
    plan: Plan,
    batches: Iterable[Inputs],
    config: CompensateConfig | None = None,
    *,
    end_batches: Iterable[Inputs] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CompensateReport:
    """Solve for the weights of a pruned network so that its layers give what those of the dense one give.

    Args:
        model: the dense network; it is not changed.
        small: the pruned one, `apply(model, plan)`; its weights, biases and batch norms change in place. The norms end
            with the statistics of the batches, so that training can go on from what the network computes.
        plan: what was removed.
        batches: calibration inputs without labels, all of one shape; a smaller last batch is left out. What a layer
            needs of all of them is in memory at once.
        config: see `CompensateConfig`.
        end_batches: what all weights are fitted together on at last (`end_epochs`), of the shapes of `batches`; by
            default these. They cost no memory beyond their own, so there can be many: augmented views, none seen twice.
        progress: told (weights done, weights in all).
    Returns:
        Each weight's error before and after, and what was left alone.
    Raises:
        DataError: there are no batches, or they differ in shape.
        CaptureError: the forward can't be run operator by operator.
        PlanError: `small` is not what `plan` makes of `model`.
    Source: He et al., "Channel Pruning for Accelerating Very Deep Neural Networks", ICCV 2017, section 3, and Kurtic et
        al., "ZipLM", NeurIPS 2023, for layers in order with inputs of the pruned network; Li et al., "BRECQ", ICLR
        2021, section 3.2, for the reconstruction of blocks.
    Differs: works on recorded operators, so on any network; shifts are fitted with the weights and go into the bias or
        the batch norm's mean; the damping is cross-validated.

    >>> from secateur import Budget, apply, plan
    >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> x = torch.randn(64, 4)
    >>> made = plan(net, x, Budget(width=0.5))
    >>> small = apply(net, made)
    >>> before = (small(x) - net(x)).square().mean()
    >>> report = compensate_(net, small, made, x.split(16))
    >>> bool((small(x) - net(x)).square().mean() < before)
    True
    """
    config = config or CompensateConfig()
    given = equal_batches(batches)
    last = None if end_batches is None else equal_batches(end_batches, given[0])
    pair = Pair(model, small, plan, given[0])
    for program in (pair.dense, pair.pruned):
        program.check(given[-1])
    readers, skipped = find_readers(pair.pruned.trace)
    segments = {s.readers[-1].op: s for s in find_segments(pair.pruned, readers)}
    job = _Job(pair, pair.start(given), config)
    layers: list[Refit] = []
    fitted: list[Reconstructed] = []
    with torch.no_grad():
        job.save()
        for i, reader in enumerate(readers):
            layers += job.solve(reader)
            if (segment := segments.get(reader.op)) is not None:
                fitted += job.reconstruct(segment)
            if progress is not None:
                progress(i + 1, len(readers))
        fitted += job.finish(given if last is None else last, readers, is_known=last is None)
    if job.has_changed:
        rebase_norms_(small, given[:_N_MEASURED])
    return CompensateReport(tuple(layers), tuple(fitted), tuple(skipped))


def equal_batches(batches: Iterable[Inputs], like: Inputs | None = None) -> list[Inputs]:
    """Batches of the first one's shapes; a smaller last one is left out. DataError where there is none, or another.

    Args:
        like: has the shapes that they must have, where that is not the first one.
    """
    found = list(batches)
    if not found:
        raise DataError("There are no calibration batches. Pass inputs without labels, for example x.split(64).")
    shapes = [_shapes(b) for b in found]
    if len(found) > 1 and shapes[-1] != shapes[0]:
        found, shapes = found[:-1], shapes[:-1]
    first = shapes[0] if like is None else _shapes(like)
    odd = next((s for s in shapes if s != first), None)
    if odd is not None:
        raise DataError(f"Calibration batches differ: {first} and {odd}. Pass batches of one shape.")
    return found


def _shapes(batch: Inputs) -> list[tuple[int, ...]]:
    return [tuple(t.shape) for t in tensors_in(as_call(batch))]


class _Job:
    """The state of both networks on all batches while weights are solved for."""

    def __init__(self, pair: Pair, runs: list[Lockstep], config: CompensateConfig) -> None:
        self.pair = pair
        self.runs = runs
        self.config = config
        self.tensors = named_tensors(pair.pruned.model)
        self.users = find_users(pair.pruned.trace)
        self.bases: dict[str, Basis] = {}  # of the weights that are to be fitted
        self.has_changed = False

    def save(self) -> None:
        """Remember where the pruned runs stand, to go through the coming segment again."""
        if self.config.reconstruct is not None and self.config.reconstruct.epochs:
            self.saved = [step.pruned.fork() for step in self.runs]

    def solve(self, reader: Reader) -> list[Refit]:
        """Bring all runs to a reader and solve for its weight, unless it reads and gives what the dense one does."""
        op = self.pair.ops[reader.op]
        stream = find_stream(reader, self.users, self.pair.pruned.derived)
        folds: list[list[Moments]] = [[] for _ in range(_N_FOLDS)]
        # What judges the fits that follow is not solved for, or the closed form would win unfairly.
        n_seen = len(self.runs) if self.config.reconstruct is None else n_fitted(len(self.runs))
        for i, step in enumerate(self.runs):
            step.dense.advance(op.index)
            step.pruned.advance(reader.op)
            step.dense.step(op)
            if i < n_seen and (self.has_changed or self._drops(op.index, reader)):
                thin = reader.thin(i, n_seen, self.config.max_rows)
                target = self._target(step, reader, stream)
                x = step.pruned[reader.x]
                folds[i % _N_FOLDS].append(Moments.of(reader.inputs(x, thin), reader.outputs(target, thin)))
        if not folds[0]:
            return []
        self.has_changed = True
        weight = self.tensors[reader.weight]
        parts = [Moments.sum(f) for f in folds if f]
        found = fit(parts, reader.matrix(weight), has_shift=reader.shift is not None)
        weight.copy_(reader.weight_of(found.weight, weight))
        if reader.shift is not None:
            shift, by = self.tensors[reader.shift], found.shift.flatten()
            shift.copy_(shift - by if reader.is_mean else by)
        settings = self.config.reconstruct
        is_fitted = settings is not None and (settings.epochs or settings.end_epochs)
        if is_fitted and (basis := Basis.of(reader, Moments.sum(parts), weight)) is not None:
            self.bases[reader.weight] = basis
        return [Refit(reader.weight, found.before, found.after)]

    def reconstruct(self, segment: Segment) -> list[Reconstructed]:
        """Fit a segment's weights together, where anything before or in it was changed."""
        settings = self.config.reconstruct
        if settings is None or not settings.epochs:
            return []
        result = []
        twin = self.pair.twin(segment.out)
        if self.has_changed and twin is not None and len(segment.readers) <= settings.max_readers:
            stop = self.pair.dense.made_at(twin) + 1
            for step in self.runs:
                step.dense.advance(stop)
            targets = [self.pair.expected(step.dense, twin) for step in self.runs]
            result = [reconstruct_(segment, self.saved, targets, settings, self.bases)]
            for step, run in zip(self.runs, self.saved, strict=True):
                step.pruned = run
        for step in self.runs:
            step.pruned.advance(segment.stop)
        self.save()
        if not settings.end_epochs:
            self.bases.clear()
        return result

    def finish(self, batches: Sequence[Inputs], readers: list[Reader], *, is_known: bool) -> list[Reconstructed]:
        """Fit all weights together to the outputs of the dense network.

        It runs when a batch is met, again in each pass unless the outputs for all batches take less room than its
        weights.

        Args:
            is_known: the batches are those that have run so far.
        """
        settings = self.config.reconstruct
        if settings is None or not settings.end_epochs or not self.has_changed:
            return []
        dense = self.pair.dense
        dtype = settings.dtype(device_of(dense.model))
        room = sum(p.numel() for p in dense.model.parameters())
        is_kept = len(batches) * math.prod(dense.trace.outputs[0].shape) <= room
        targets: dict[int, torch.Tensor] = {}
        if is_kept and is_known:
            targets = {i: step.dense.finish()[0] for i, step in enumerate(self.runs)}
        self.runs, self.saved = [], []  # their tensors take the room that gradients need
        starts = self.pair.start(batches)
        segment = whole(self.pair.pruned, readers)

        def target(i: int) -> torch.Tensor:
            if i in targets:
                return targets[i]
            with torch.no_grad():
                found = starts[i].dense.fork(dtype=dtype, folds=dense.folds).finish()[0]
            if is_kept:
                targets[i] = found
            return found

        def loss(i: int, out: torch.Tensor) -> torch.Tensor:
            return distance(settings.distance, target(i).to(out.dtype), out)

        runs = [step.pruned for step in starts]
        return [fit_(segment, runs, loss, settings.end_epochs, settings.end_lr, settings, self.bases)]

    def _drops(self, op: int, reader: Reader) -> bool:
        """True where the weight has lost columns: rows alone leave what remains as it was."""
        axes = self.pair.graph.trace.tensors[reader.weight].shape, self.pair.pruned.trace.tensors[reader.weight].shape
        axis = 0 if reader.window is None and reader.is_transposed else 1
        return axes[0][axis] != axes[1][axis]

    def _target(self, step: Lockstep, reader: Reader, stream: Stream | None) -> torch.Tensor:
        """What the dense operator gives, cut to what is kept, plus what makes up for the drift of the stream."""
        op = self.pair.ops[reader.op]
        assert op.outputs[0] is not None
        target = self.pair.expected(step.dense, op.outputs[0])
        twin = None if stream is None else self.pair.twin(stream.other)
        if stream is None or twin is None or twin not in step.dense or stream.other not in step.pruned:
            return target
        gap = self.pair.expected(step.dense, twin) - step.pruned[stream.other]
        return target + stream.shift(step.pruned, target, gap)
