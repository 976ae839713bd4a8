"""Carrying out one start or one cell. Both are deterministic, but for times."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

from torch import nn

from secateur.calls import make
from secateur.coding import bake
from secateur.compare.cells import Cell, Grid, Start
from secateur.compare.folds import Cut, cut_folds
from secateur.compare.rows import Row
from secateur.compare.store import Store
from secateur.compare.subjects import SUBJECTS, Task
from secateur.compare.techniques import PRUNINGS, QUANTIZATIONS, Target, check_zeros
from secateur.compression.material import Material, context_of
from secateur.compression.meter import Meter
from secateur.compression.pipeline import carry_out
from secateur.edits import Edits
from secateur.errors import ConfigError, SecateurError
from secateur.graph import trace
from secateur.measure import count_parameters, size_bytes
from secateur.measure.modes import cpu_threads
from secateur.steps import Context
from secateur.steps.clock import Clock
from secateur.steps.order import check_order

SCALES = 64
"""Widths of a smaller network are multiples of 1 / SCALES of the dense ones, rounded."""


def train_start(start: Start, grid: Grid, store: Store) -> tuple[float, float]:
    """Train a network and keep it. Returns seconds, and those of them outside training."""
    begin, clock = time.perf_counter(), Clock()
    with cpu_threads(1):
        task, _ = task_of(replace(start, budget=1.0), grid)
        with clock.phase("train"):
            scale = 1.0 if start.budget == 1 else scale_for(task, start.budget, grid.cost)
            model = task.fit(scale)
        store.keep_start(start, model, scale)
    seconds = time.perf_counter() - begin
    return seconds, seconds - sum(clock.seconds.values())


def run_cell(cell: Cell, grid: Grid, store: Store) -> Row:
    """Make a network smaller, fine-tune it, score it and keep the row. Its start and the dense one are in the store.

    A technique that can't be used on the network is no failure of the comparison: the row says why.
    """
    begin, clock = time.perf_counter(), Clock()
    found: dict[str, Any] = {"measure": type(make(SUBJECTS, cell.model)).measure}
    with cpu_threads(1):
        task, cut = task_of(cell.dense, grid)
        dense, model = (_trained(start, grid, store) for start in (cell.dense, cell.start))
        splits = task.splits(dense)
        material = Material(samples=splits.train, train=splits.train, val=splits.val, test=splits.test)
        context = context_of(material, dense, grid.n_calibration, cell.seed)
        try:
            with clock.phase("steps"):
                small, notes = _shrunk(cell, grid.cost, model, context, task)
        except SecateurError as error:
            found["reason"] = str(error)
        else:
            with clock.phase("score"):
                found |= _scores(task, small, found["measure"])
            with clock.phase("measure"), _light_collections():
                found |= _costs(small, Meter(dense, material, grid.measure, context.inputs))
            found |= {"test_over_train": cut.test_over_train, "notes": "; ".join(notes)}
    seconds = time.perf_counter() - begin
    outside = seconds - sum(clock.seconds.values())
    row = Row(**asdict(cell), **found, seconds=seconds, seconds_outside=outside)
    store.keep_row(row)
    return row


@lru_cache(maxsize=8)  # cells of one network stand together
def task_of(dense: Start, grid: Grid) -> tuple[Task, Cut]:
    """The samples of a dense network, cut; those of narrower ones are the same."""
    subject = make(SUBJECTS, dense.model)
    cuts = cut_folds(subject.labels(), grid.folds, dense.seed, grid.val_fraction, subject.held_out())
    cut = cuts[dense.fold]
    return subject.task(cut, dense.seed), cut


@lru_cache(maxsize=8)  # steps leave the network that they are given as it is
def _trained(start: Start, grid: Grid, store: Store) -> nn.Module:
    task, _ = task_of(replace(start, budget=1.0), grid)
    return store.start(start, task)


def scale_for(task: Task, budget: float, cost: str = "macs") -> float:
    """The largest scale at which the network costs no more than `budget` of what it does at scale 1."""

    def spent(n: int) -> int:
        model = task.build(n / SCALES).eval()
        found: int = getattr(trace(model, task.splits(model).train.fetch([0])[0]).cost(), cost)
        return found

    allowed = budget * spent(SCALES)
    low, high = 1, SCALES  # spent(low) is allowed, or nothing is; spent(high) is not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(middle) <= allowed else (low, middle)
    return low / SCALES


def _shrunk(cell: Cell, cost: str, model: nn.Module, context: Context, task: Task) -> tuple[nn.Module, list[str]]:
    """The network after the steps of a cell, with what they say.

    Raises:
        ConfigError: a step has nothing to work on, so that the cell would not be what its name says.
    """
    target = Target(budget=cell.budget, cost=cost, model=model, example=context.example, seed=cell.seed)
    pruning, quantization = PRUNINGS[cell.pruning](target), QUANTIZATIONS[cell.quantization]
    shrinking = (*pruning, *quantization)
    steps = (*shrinking, task.finetune)
    check_order(steps)
    check_zeros(pruning, quantization)
    small, notes, edits = model, [], Edits()
    for step in steps:
        small, edits, done = carry_out(step, small, edits, context)
        if step in shrinking and done.edit is None:
            left = "; ".join(f"'{name}': {reason}" for name, reason in done.skipped[:3])
            raise ConfigError(f"The step {step.name} changes nothing here. {left or ' '.join(done.notes)}")
        notes += [f"{step.name}: {note}" for note in done.notes]
    return small, notes


def _scores(task: Task, model: nn.Module, measure: str) -> dict[str, float]:
    parts = {part: task.score(model, part) for part in ("train", "val", "test")}
    main = {part: found[measure] for part, found in parts.items()}
    losses = {part: found.pop("loss") for part, found in parts.items() if "loss" in found}
    chosen_by = {"val_loss": losses["val"]} if losses else {}
    return {**parts["test"], **main, **chosen_by, "gap": main["train"] - main["test"]}


@contextmanager
def _light_collections() -> Iterator[None]:
    """Take what is there out of the garbage collector's sight: each timing starts with a collection, and goes
    through all of it otherwise.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _costs(model: nn.Module, meter: Meter) -> dict[str, float]:
    plain = bake(model)
    pair = meter.pair(plain)
    return {
        "params": count_parameters(plain),
        "macs": meter.macs(plain),
        "size_bytes": size_bytes(model),
        "latency_ms": pair.small.median_ms,
        "speedup": pair.speedup,
    }
