"""Training a model on, alone or under the dense one's guidance."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.compiling import compiled
from secateur.data.batches import Batch, forward, labels_of, logits_of
from secateur.errors import ConfigError
from secateur.measure.modes import device_of
from secateur.steps.base import FORMS, STEPS, Context, Done
from secateur.surgery import copy_model
from secateur.train import fit_
from secateur.train.augment import check_labels_stay
from secateur.train.config import TrainConfig
from secateur.train.history import History
from secateur.train.losses import Loss as BatchLoss
from secateur.train.losses import cross_entropy


@dataclass(frozen=True, kw_only=True)
class Distill:
    """Learn from the dense model's logits as well as from labels.

    loss = (1 - weight) * task loss + weight * T ** 2 * KL(softmax(dense / T) || softmax(small / T)), mean over samples

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2.
    """

    weight: float = 0.5  # of the dense model's logits; 1 needs no labels but in the data's form
    temperature: float = 2.0

    def __post_init__(self) -> None:
        if not (0 < self.weight <= 1 and self.temperature > 0):
            raise ConfigError(f"weight={self.weight} must lie in (0, 1] and temperature={self.temperature} above 0.")

    def loss(self, teacher: Tensor, student: Tensor) -> Tensor:
        """T ** 2 * KL of (n, classes) logits; the factor keeps gradients of one size for every temperature.

        >>> Distill().loss(torch.zeros(2, 3), torch.ones(2, 3)).item()
        0.0
        """
        wanted, given = (functional.log_softmax(t / self.temperature, -1) for t in (teacher, student))
        found = functional.kl_div(given, wanted, reduction="batchmean", log_target=True)
        return self.temperature**2 * found.clamp(min=0)


@STEPS.register("finetune")
@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Train all parameters on. Codings stay: masked weights stay zero, quantized ones are trained straight through."""

    name: ClassVar[str] = "finetune"
    accepts: ClassVar[frozenset[str]] = frozenset(FORMS)
    leaves: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = True

    train: TrainConfig = field(default_factory=TrainConfig)
    distill: Distill | None = None  # learn from the dense model too

    def __post_init__(self) -> None:
        if not _is_from_dense_alone(self.distill):
            check_labels_stay(self.train.augment)

    def run(self, model: nn.Module, context: Context) -> Done:
        """Train a copy; the weights of the last epoch are kept."""
        small = copy_model(model)
        with context.clock.phase("fine-tune"):
            history = tune_(small, context, self.train, self.distill)
        return Done(small, facts={"epochs": [vars(record) for record in history.epochs]})


def tune_(model: nn.Module, context: Context, config: TrainConfig, distill: Distill | None = None) -> History:
    """Fine-tune in place, and leave the model in eval mode on its device; returns the history."""
    assert context.train is not None
    if not _is_from_dense_alone(distill):
        check_labels_stay(config.augment)
    device = device_of(model)
    history = fit_(
        model,
        context.train,
        context.val,
        config,
        loss=_task(context) if distill is None else _guided(context, distill, config),
        checkpoint=context.checkpoint,
        progress=context.progress,
    )
    model.to(device).eval()
    return history


def _is_from_dense_alone(distill: Distill | None) -> bool:
    return distill is not None and distill.weight == 1


def _task(context: Context) -> BatchLoss | None:
    loss = context.loss
    return None if loss is None else lambda outputs, batch: loss(outputs, labels_of(batch))


def _guided(context: Context, distill: Distill, config: TrainConfig) -> BatchLoss:
    task = _task(context) or partial(cross_entropy, label_smoothing=config.label_smoothing)
    teacher = copy_model(context.dense).eval()
    program = compiled(teacher) if config.is_compiled else teacher

    def loss(outputs: Any, batch: Batch) -> Tensor:
        student = logits_of(outputs)
        guide = program if torch.is_grad_enabled() else teacher  # validation's batches are too few to compile for
        with torch.no_grad():
            wanted = logits_of(forward(guide.to(student.device), batch))
        found = distill.weight * distill.loss(wanted, student)
        return found if distill.weight == 1 else found + (1 - distill.weight) * task(outputs, batch)

    return loss
