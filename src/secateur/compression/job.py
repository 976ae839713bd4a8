"""The main job, step by step: plan, apply, verify, fine-tune, measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from secateur.allocate import Budget
from secateur.coding import bake
from secateur.compression.config import CompressConfig, Settled
from secateur.compression.material import Material, check_weights, context_of, read_material
from secateur.compression.meter import Meter, gather, times
from secateur.compression.report import CompressReport, Measured, versions
from secateur.compression.search import Found, search_budget
from secateur.edits import Edits
from secateur.errors import ConfigError
from secateur.measure import PairedLatency, evaluate
from secateur.measure.modes import eval_mode
from secateur.planning import Loss
from secateur.plans import Plan
from secateur.steps import Context
from secateur.steps.clock import Clock
from secateur.steps.finetune import tune_
from secateur.steps.prune import Shrunk


@dataclass(frozen=True)
class Compressed:
    """The smaller model, the plan that made it, and what was measured."""

    model: nn.Module
    plan: Plan
    report: CompressReport

    @property
    def edits(self) -> Edits:
        """The plan as a list of edits, as `run_steps` gives."""
        return Edits.of(self.plan)


def compress(
    model: nn.Module,
    data: Any,
    *,
    budget: Budget,
    config: CompressConfig | None = None,
    labels: Tensor | None = None,
    loss: Loss | None = None,
    metric: Callable[[nn.Module], float] | None = None,
    progress: bool = True,
) -> Compressed:
    """Prune a trained model, prove the result, fine-tune it where there are labels, and measure before and after.

    Args:
        model: the trained model; it is not changed.
        data: a tensor of inputs (N, ...), batches (a DataLoader or any iterable), a Dataset, or a `DataSplits`. Items
            are x, (x, y), or dicts of keyword inputs, with "labels" where there are any. Labelled data that is not yet
            split is cut into train, validation and test; only the last evaluation sees the test part. Where the dense
            model has been trained on the same data, its own numbers are those of data that it knows.
        budget: what may be kept.
        config: the steps' settings. What they leave open follows the data: what has labels is pruned by L2 and
            fine-tuned, what has none is pruned by elimination and compensated.
        labels: (N,), for a tensor of inputs.
        loss: of (outputs, labels), for gradients and fine-tuning; by default cross-entropy, or the model's own.
        metric: of a model in eval mode, larger = better, 0.01 is a point; for `Budget(drop_points=)`. By default the
            accuracy on the validation part. Never measure it on the data that you report on.
        progress: draw a bar on stderr while fine-tuning, if that is a terminal.
    Returns:
        The model in eval mode, on the device of the dense one; its plan; the report.
    Raises:
        DataError: the data is empty or does not fit.
        GroupError: weights hold NaN or Inf.
        CaptureError, PlanError, VerifyError, TrainError: see `plan`, `verify` and `fit_`.

    >>> import torch
    >>> x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    >>> small = compress(net, x, labels=(x.sum(1) > 0).long(), budget=Budget(macs=0.5), progress=False)
    >>> small.report.dense.macs, small.report.finetuned.macs
    (96, 48)
    """
    config = config or CompressConfig()
    clock = Clock()
    with clock.phase("read data"):
        material = read_material(data, labels, config.split)
        check_weights(model)
    settled = config.settled(has_labels=material.train is not None)
    context = context_of(material, model, config.calibration.n_samples, config.seed, loss)
    context = replace(context, clock=clock, progress=progress)
    asked, searched = budget, None
    if budget.drop_points is not None:
        with clock.phase("search"):
            searched = _search(model, budget, metric or _validation_accuracy(material), context, settled)
        budget = searched.budget
    done = _shrink(model, budget, context, settled)
    stages, pair = _tune_and_measure(done, context, settled, Meter(model, material, config.measure, context.inputs))
    facts = _facts(settled, config.split.seed, material, asked, clock)
    report = _report(stages, replace(done, notes=(*done.notes, *settled.notes)), pair, facts, searched)
    return Compressed(done.model, done.plan, report)


def _tune_and_measure(
    done: Shrunk, context: Context, config: Settled, meter: Meter
) -> tuple[dict[str, Measured | None], PairedLatency]:
    """Fine-tune the small model in place where there are labels; every stage by name, and the times."""
    dense, small, clock = context.dense, done.model, context.clock
    with clock.phase("evaluate dense and pruned"):
        quality = {"dense": meter.quality(dense), "pruned": meter.quality(small)}
    if config.finetune is not None:
        with clock.phase("fine-tune"):
            tune_(small, context, config.finetune)
        with clock.phase("evaluate fine-tuned"):
            quality["finetuned"] = meter.quality(small)
    with clock.phase("time"):
        pair = meter.pair(small)  # pruned and fine-tuned run the same operations: one time stands for both
    stages: dict[str, Measured | None] = {"finetuned": None}
    for name, found in quality.items():
        before, after = (dense, done.plan.cost_before, pair.dense), (small, done.plan.cost_after, pair.small)
        model, cost, timed = before if name == "dense" else after
        stages[name] = gather(model, bake(model), cost.macs, found, timed)
    return stages, pair


def _shrink(model: nn.Module, budget: Budget, context: Context, config: Settled) -> Shrunk:
    """Time is predicted for the threads that it is measured with."""
    return config.pruning(budget).shrink(model, context, budget, config.measure.n_threads)


def _search(
    model: nn.Module,
    budget: Budget,
    metric: Callable[[nn.Module], float],
    context: Context,
    config: Settled,
) -> Found:
    quiet = replace(context, clock=Clock(), progress=False)

    def attempt(tried: Budget) -> tuple[float, float]:
        done = _shrink(model, tried, quiet, config)
        if config.finetune is not None:
            tune_(done.model, quiet, config.finetune)
        return metric(done.model), done.plan.cost_after.macs / done.plan.cost_before.macs

    with eval_mode(model):
        return search_budget(budget, metric(model), attempt)


def _validation_accuracy(material: Material) -> Callable[[nn.Module], float]:
    val = material.val
    if val is None or not material.has_classes:
        raise ConfigError(
            "drop_points needs data with class labels to validate on, or a function: compress(…, metric=)."
        )
    return lambda model: evaluate(model, val).accuracy


def _facts(config: Settled, split_seed: int, material: Material, budget: Budget, clock: Clock) -> dict[str, Any]:
    seeds = {"split": split_seed, "prune": config.prune.seed}
    if config.finetune is not None:
        seeds["finetune"] = config.finetune.seed
    return {
        "budget": budget.asked(),
        "n_samples": material.sizes(),
        "seeds": seeds,
        "versions": versions(),
        "seconds": clock.seconds,
    }


def _prediction(made: Plan, pair: PairedLatency) -> list[str]:
    """How a predicted latency compares with the measured one; nothing where none was asked for."""
    before, after = made.cost_before.latency_ms, made.cost_after.latency_ms
    if not before:
        return []
    return [
        f"latency was predicted as {after / before:.3f} of dense for one sample, and measured as {1 / pair.speedup:.3f}"
        f" for a batch of {pair.small.batch_size}."
    ]


def _report(
    stages: Mapping[str, Any], done: Shrunk, pair: PairedLatency, facts: dict[str, Any], searched: Found | None
) -> CompressReport:
    made, proof = done.plan, done.proof
    return CompressReport(
        **stages,
        verify=str(proof),
        max_difference=proof.max_difference,
        **times(pair),
        skipped=made.skipped,
        notes=(
            *made.notes,
            *done.notes,
            *_prediction(made, pair),
            *([searched.note] if searched is not None and searched.note else []),
        ),
        tries=() if searched is None else searched.tries,
        **facts,
    )
