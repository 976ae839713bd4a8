"""Reconstruction: the weights of a segment are fitted together, by gradients, to what the dense network gives there.

The closed form is exact for one layer and knows nothing of the nonlinearity behind it. A segment (a residual block)
has its error at its end, and few weights; a handful of passes over the calibration batches finds better ones.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.lr_scheduler import LambdaLR

from secateur.compensation.bases import Basis
from secateur.compensation.config import ReconstructConfig
from secateur.compensation.segments import Segment
from secateur.errors import ConfigError, first_line
from secateur.measure.modes import device_of
from secateur.program import Run
from secateur.tensors import wide

_WARM_UP = 0.1  # of all steps
_HELD_OUT = 8  # one batch of so many decides whether the fit is kept
_MOST_HELD_OUT = 16


@dataclass(frozen=True)
class Reconstructed:
    """A segment's squared error over the variance of its target, on batches that the fit did not see.

    For the whole network it is the distance of the outputs.

    `weights` are the readers' keys. Where the fit did not help, the closed form stays, and `after` equals `before`.
    """

    weights: tuple[str, ...]
    before: float
    after: float


Loss = Callable[[int, Tensor], Tensor]
"""Of the index of a batch and what the segment gives for it, in float32 at least."""


def reconstruct_(
    segment: Segment,
    runs: Sequence[Run],
    targets: Sequence[Tensor],
    config: ReconstructConfig,
    bases: Mapping[str, Basis],
) -> Reconstructed:
    """Fit the parameters of a segment in place: min sum over batches |out - target|^2.

    Args:
        runs: the pruned network's, each before the segment's first operator; they are left there.
        targets: what the segment should give, batch by batch.
        bases: see `fit_`.
    """
    energy = max(float(sum(t.double().var() for t in targets)) / len(targets), 1e-30)

    def loss(i: int, out: Tensor) -> Tensor:
        return (out - wide(targets[i])).square().mean() / energy

    return fit_(segment, runs, loss, config.epochs, config.lr, config, bases)


@dataclass(frozen=True)
class _Moved:
    """The parameters that a fit moves, each by the index of its value.

    Attributes:
        start: what they were.
        bases: the axes along which some are moved.
        leaves: what the optimizer moves: coordinates, or the parameter itself, in float32 at least.
    """

    start: dict[int, Tensor]
    bases: dict[int, Basis]
    leaves: dict[int, Tensor]

    @classmethod
    def of(cls, segment: Segment, fixed: Mapping[int, Tensor], bases: Mapping[str, Basis]) -> Self:
        """Those of a segment, as they stand in a program."""
        start = {v.index: fixed[v.index].detach().clone() for v in segment.parameters}
        along = {v.index: bases[v.key] for v in segment.parameters if v.key in bases}
        leaves = {i: along[i].coordinates(t) if i in along else wide(t).clone() for i, t in start.items()}
        return cls(start, along, {i: t.requires_grad_() for i, t in leaves.items()})

    def weights(self) -> dict[int, Tensor]:
        """The parameters where the leaves stand now, in their own dtypes. Gradients flow."""
        return {
            i: self.bases[i].weight(t, self.start[i]) if i in self.bases else t.to(self.start[i].dtype)
            for i, t in self.leaves.items()
        }


def n_fitted(n_batches: int) -> int:
    """How many batches weights are fitted to; the others, the last ones, decide whether a fit is kept."""
    return n_batches - min(max(1, n_batches // _HELD_OUT), _MOST_HELD_OUT) if n_batches > 1 else n_batches


def fit_(
    segment: Segment,
    runs: Sequence[Run],
    loss: Loss,
    epochs: int,
    lr: float,
    config: ReconstructConfig,
    bases: Mapping[str, Basis],
) -> Reconstructed:
    """Fit the parameters of a segment in place to the least mean loss, by Adam along the axes of what layers read.

    Args:
        runs: the pruned network's, each before the segment's first operator; they are left there.
        loss: one batch in eight, sixteen at most, is not fitted to, and decides whether the fit is kept.
        lr: the first step, relative to the root mean square of a matrix; a tenth of it for vectors.
        config: gives the precision and the seed.
        bases: by the key of a weight, the coordinates that it is fitted in; others are fitted as they are.
    Raises:
        ConfigError: an operator does not run in the precision.
    Source: George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018,
        and Vyas et al., "SOAP", ICLR 2025, for scales of steps along eigenvectors.
    Differs: these are of the inputs alone, known from the calibration data before the fit, and stay.
    """
    program = runs[0].program
    fixed = program.fixed
    dtype = config.dtype(device_of(program.model))
    folds = {at: norm for at, norm in program.folds.items() if segment.start <= at and norm.index < segment.stop}
    moved = _Moved.of(segment, fixed, bases)
    n_seen = n_fitted(len(runs))
    seen, unseen = range(n_seen), range(n_seen, len(runs))

    def loss_of(i: int, instead: dict[int, Tensor]) -> Tensor:
        run = runs[i].fork(instead, dtype, folds)
        run.advance(segment.stop)
        return loss(i, wide(run[segment.out]))

    def unseen_loss(instead: dict[int, Tensor]) -> float:
        return sum(float(loss_of(i, instead)) for i in unseen or seen) / len(unseen or seen)

    with _refused(dtype):
        before = unseen_loss(moved.start)
    optimizer = Adam(
        [{"params": [t], "lr": lr * _rms(t) * (1 if t.dim() > 1 else 0.1)} for t in moved.leaves.values()],
        betas=(0.9, 0.99),
    )
    total = epochs * len(seen)
    schedule = LambdaLR(optimizer, lambda step: _rate(step / total))
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(epochs):
        for i in torch.randperm(len(seen), generator=generator).tolist():
            with torch.enable_grad():
                value = loss_of(i, moved.weights())
            optimizer.zero_grad()
            torch.autograd.backward(value)
            optimizer.step()
            schedule.step()
    found = moved.weights()
    after = unseen_loss(found)
    keys = tuple(r.weight for r in segment.readers)
    if not after < before:
        return Reconstructed(keys, before, before)
    for i, t in found.items():
        fixed[i].copy_(t.detach())
    return Reconstructed(keys, before, after)


@contextlib.contextmanager
def _refused(dtype: torch.dtype | None) -> Iterator[None]:
    """Say what to do where an operator does not run in a precision that was asked for."""
    try:
        yield
    except RuntimeError as error:
        if dtype is None:
            raise
        raise ConfigError(
            f"precision='bf16' can't be fitted in: {first_line(error)}. An operator takes no mixture of types."
            " Use precision='fp32'."
        ) from error


def _rate(done: float) -> float:
    """Of the first learning rate: up in a line, down in a cosine."""
    return min(1.0, (done + 1e-3) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _rms(t: Tensor) -> float:
    """Root mean square; of a vector of zeros, a small step's worth."""
    return max(float(t.detach().double().square().mean().sqrt()), 1e-3)
