"""Several techniques in a row: carry out a list of steps, and measure after each."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from secateur.coding import bake, settle_
from secateur.compression.config import CompressConfig
from secateur.compression.material import check_weights, context_of, read_material
from secateur.compression.meter import Meter, times
from secateur.compression.report import Measured, StepReport, StepsReport, versions
from secateur.compression.resume import Checkpoints
from secateur.edits import Edits
from secateur.files.decode import decode
from secateur.planning import Loss
from secateur.specs import to_spec
from secateur.steps.base import Context, Done, Step
from secateur.steps.order import check_order
from secateur.surgery import copy_model

log = logging.getLogger("secateur")


@dataclass(frozen=True)
class Composed:
    """The model after the last step (its weights still coded, see `secateur.bake`), the edits that lead to it."""

    model: nn.Module
    edits: Edits
    report: StepsReport


def run_steps(
    model: nn.Module,
    data: Any,
    steps: Sequence[Step],
    *,
    config: CompressConfig | None = None,
    labels: Any = None,
    loss: Loss | None = None,
    checkpoints: Path | None = None,
    progress: bool = True,
) -> Composed:
    """Carry out steps in order on a copy of the model, and measure after each.

    Args:
        model, data, labels, loss, progress: as for `compress`.
        config: its `calibration`, `measure` and `split`; the steps say the rest.
        checkpoints: a folder for the model after each step. A run that was killed goes on from the last one that is
            there, if the model, the data's form and the steps up to it are the same; it is removed at the end.
    Raises:
        ConfigError: the steps can't follow each other so. Nothing was done.
        SecateurError: what the steps raise; the checkpoints of those before stay.
    """
    config = config or CompressConfig()
    material = read_material(data, labels, config.split)
    check_order(steps, has_labels=material.train is not None)
    check_weights(model)
    context = context_of(material, model, config.calibration.n_samples, config.seed, loss)
    context = replace(context, progress=progress)
    meter = Meter(model, material, config.measure, context.inputs)
    current, edits = copy_model(model).eval(), Edits(inputs=to_spec(context.example))
    reports: list[StepReport] = []
    store = None if checkpoints is None else Checkpoints(checkpoints, model, steps, material)
    if store is not None:
        current, edits, before = store.latest(current, edits)
        reports = [decode(StepReport, report, "steps") for report in before]
    for i in range(len(reports), len(steps)):
        log.info("step %d of %d: %s", i + 1, len(steps), steps[i].name)
        start = time.perf_counter()
        inside = replace(context, checkpoint=None if store is None else store.inside(i))
        current, edits, done = carry_out(steps[i], current, edits, inside)
        seconds = time.perf_counter() - start
        reports.append(_step_report(steps[i].name, done, meter.measured(current), seconds))
        if store is not None:
            store.keep(current, edits, [asdict(r) for r in reports])
    pair = meter.pair(bake(current))
    if store is not None:
        store.remove()
    report = StepsReport(
        dense=meter.dense_beside(pair),
        steps=tuple(reports),
        **times(pair),
        n_samples=material.sizes(),
        seeds={"split": config.split.seed, "calibration": config.seed},
        versions=versions(),
        seconds=context.clock.seconds,
    )
    return Composed(current, edits, report)


def carry_out(step: Step, model: nn.Module, edits: Edits, context: Context) -> tuple[nn.Module, Edits, Done]:
    """One step on a copy of the model: what it gives, with the edits that lead there. Nothing is measured."""
    with context.clock.phase(step.name):
        done = step.run(model, context)
    settle_(done.model)
    return done.model.eval(), edits if done.edit is None else edits.then(done.edit), done


def _step_report(name: str, done: Done, measured: Measured, seconds: float) -> StepReport:
    return StepReport(
        name=name,
        measured=measured,
        skipped=done.skipped,
        notes=done.notes,
        facts=done.facts,
        seconds=round(seconds, 3),
    )
