"""Choosing which blocks go. Each way is a function; those that look at data take batches afresh."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.criteria.kl import kl_divergence, predictions
from secateur.criteria.samples import inputs_of, split
from secateur.depth.blocks import Block, Identity
from secateur.errors import ConfigError
from secateur.forward import plain_forward
from secateur.planning import Loss
from secateur.registry import Registry
from secateur.surgery import replace_modules_
from secateur.tensors import on_device
from secateur.watching import watch


@dataclass(frozen=True)
class Choice:
    """Blocks to remove, and what was measured on the way, by fqn (of a run: that of its first block)."""

    blocks: tuple[Block, ...]
    scores: dict[str, float]


@dataclass(frozen=True)
class Data:
    """Calibration batches, afresh at each call, with labels where there are any; and the loss of (outputs, labels)."""

    batches: Callable[[], Iterable[Any]]
    loss: Loss


Choose = Callable[[nn.Module, Sequence[Block], int, Data], Choice]
"""Of (a model that may be changed meanwhile, its blocks in order, how many to remove, what they are judged on)."""

CHOICES = Registry[str, Choose]("choice of blocks")


@CHOICES.register("first")
def first(model: nn.Module, blocks: Sequence[Block], n: int, data: Data) -> Choice:
    """The first n."""
    return Choice(tuple(blocks[:n]), {})


@CHOICES.register("last")
def last(model: nn.Module, blocks: Sequence[Block], n: int, data: Data) -> Choice:
    """The last n."""
    return Choice(tuple(blocks[len(blocks) - n :]), {})


@CHOICES.register("angular")
def angular(model: nn.Module, blocks: Sequence[Block], n: int, data: Data) -> Choice:
    """The n neighbours that turn what goes through them least: mean of arccos(cos(x, y)) / pi.

    x is the input of the first and y the output of the last of them. Vectors are those of the last axis for inputs
    (B, T, C), and whole samples for others. Where no list has n blocks in a row, single blocks are taken.
    Source: Gromov et al., "The Unreasonable Ineffectiveness of the Deeper Layers", 2024, section 3.2.
    Differs: all positions count, there the last token of each sample.
    """
    runs = [tuple(blocks[i : i + n]) for i in range(len(blocks) - n + 1)]
    runs = [run for run in runs if all(b.holder == run[0].holder for b in run)]
    runs = [run for run in runs if run[-1].index - run[0].index == n - 1]
    groups = runs or [(block,) for block in blocks]
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    angles = dict.fromkeys((group[0].fqn for group in groups), 0.0)
    n_batches = 0

    def see(fqn: str, x: Tensor, out: Any) -> None:
        inputs.setdefault(fqn, x.clone())  # what is written over later
        outputs[fqn] = out[0] if isinstance(out, tuple) else out

    def add() -> None:
        nonlocal n_batches
        n_batches += 1
        for group in groups:
            angles[group[0].fqn] += _angle(inputs[group[0].fqn], outputs[group[-1].fqn])
        inputs.clear()
        outputs.clear()

    modules = {block.fqn: model.get_submodule(block.fqn) for block in blocks}
    watch(model, modules, map(inputs_of, data.batches()), see, add)
    if not n_batches:
        raise ConfigError("There is no calibration batch to compare inputs and outputs of blocks on.")
    scores = {fqn: angle / n_batches for fqn, angle in angles.items()}
    ranked = sorted(groups, key=lambda group: scores[group[0].fqn])
    return Choice(ranked[0] if runs else tuple(group[0] for group in ranked[:n]), scores)


@CHOICES.register("kl")
def kl(model: nn.Module, blocks: Sequence[Block], n: int, data: Data) -> Choice:
    """One after another, the block whose removal changes the predictions least: mean KL(p || p without it), no labels.

    p is what the model predicted before the first removal. Takes about n * len(blocks) passes over the data.
    """

    def scores(trials: Sequence[Sequence[Block]]) -> list[float]:
        sums, n_samples = [0.0] * len(trials), 0
        for inputs in map(inputs_of, data.batches()):
            full = predictions(_run(model, (), inputs))
            n_samples += len(full)
            sums = [
                s + kl_divergence(full, predictions(_run(model, t, inputs))) for s, t in zip(sums, trials, strict=True)
            ]
        return [s / max(1, n_samples) for s in sums]

    return _greedy(blocks, n, scores)


@CHOICES.register("loss")
def loss(model: nn.Module, blocks: Sequence[Block], n: int, data: Data) -> Choice:
    """One after another, the block without which the loss is least. Needs labels; as many passes as `kl`."""

    def scores(trials: Sequence[Sequence[Block]]) -> list[float]:
        batches = [split(batch, i) for i, batch in enumerate(data.batches())]
        return [_mean(float(data.loss(_run(model, t, x), y)) for x, y in batches) for t in trials]

    return _greedy(blocks, n, scores)


def _greedy(blocks: Sequence[Block], n: int, score: Callable[[Sequence[Sequence[Block]]], list[float]]) -> Choice:
    """Remove what costs least, n times; scores are those of each block when it went."""
    gone: tuple[Block, ...] = ()
    measured: dict[str, float] = {}
    for _ in range(n):
        left = [block for block in blocks if block not in gone]
        scores = score([(*gone, block) for block in left])
        least, best = min(zip(scores, left, strict=True), key=lambda pair: pair[0])
        if not math.isfinite(least):
            raise ConfigError(f"Without '{best.fqn}' the score is {least}. Check the calibration data.")
        gone += (best,)
        measured[best.fqn] = least
    return Choice(gone, measured)


def _run(model: nn.Module, without: Sequence[Block], inputs: Any) -> Any:
    """What the model gives with some blocks replaced by identities; it is put back afterwards."""
    before = {block.fqn: model.get_submodule(block.fqn) for block in without}
    replace_modules_(model, {b.fqn: Identity.of(before[b.fqn], b.n_outputs) for b in without})
    try:
        with plain_forward(model):
            args, kwargs = on_device(model, inputs)
            return model(*args, **kwargs)
    finally:
        replace_modules_(model, before)


def _angle(x: Tensor, y: Tensor) -> float:
    a, b = ((t.flatten(0, 1) if t.dim() == 3 else t.flatten(1)).double() for t in (x, y))
    return float(torch.cosine_similarity(a, b).clamp(-1, 1).arccos().mean()) / math.pi


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / max(1, len(found))
