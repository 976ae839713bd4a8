"""The contract of a step, and what a step may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn
from torch.utils.data import Dataset

from secateur.criteria import cross_entropy
from secateur.edits import Edit, Edits
from secateur.planning import Loss
from secateur.registry import Registry
from secateur.steps.clock import Clock
from secateur.tensors import Inputs

FORMS = {
    "masked": "weights that a mask keeps at zero",
    "factored": "weights as products of smaller ones",
    "quantized": "weights on a grid of few levels",
    "shared": "weights that come from a codebook",
    "input-quantized": "weights of layers that read few levels",
}
"""What a step may leave weights as, beside plain numbers."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step may use beside the model.

    Attributes:
        dense: the model as it was before the first step; it is not changed.
        inputs: gives so many samples as model inputs, on the model's device.
        calibration: gives batches of training samples, with labels where there are any, afresh at each call.
        train, val: labelled samples to train on and to choose by, where there are any.
        loss: of (outputs, labels); None stands for cross-entropy, or the model's own.
        seed: of everything random in a step that has no seed of its own.
        progress: draw bars on stderr, if that is a terminal.
        checkpoint: a file that a long step may keep its progress in, to go on from after a kill.
        clock: seconds per phase.
    """

    dense: nn.Module
    inputs: Callable[[int], Inputs]
    calibration: Callable[[], Any]
    train: Dataset[Any] | None = None
    val: Dataset[Any] | None = None
    loss: Loss | None = None
    seed: int = 0
    progress: bool = False
    checkpoint: Path | None = None
    clock: Clock = field(default_factory=Clock)

    @property
    def example(self) -> Inputs:
        """One sample as model inputs, on the model's device."""
        return self.inputs(1)

    @property
    def label_loss(self) -> Loss:
        """Of (outputs, labels), whether the user gave one or not."""
        return self.loss or cross_entropy


@dataclass(frozen=True)
class Done:
    """What a step gives back.

    Attributes:
        model: the new model in eval mode; the one that the step was given is untouched.
        edit: what changed in its structure, in order; None where only values did.
        skipped: what was left alone, as (name, reason).
        notes: what the report should say: what was reached, and what was not.
        facts: plain data for the report (errors by layer, kept layers, …).
    """

    model: nn.Module
    edit: Edit | Edits | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Step(Protocol):
    """A frozen dataclass of settings that can carry itself out.

    Class attributes:
        name: in `STEPS` and in recipes.
        accepts: the forms (of `FORMS`) that weights may already have when it starts; plain ones it always takes.
        leaves: the forms that it adds.
        needs_labels: it can't run on inputs alone; a property where that depends on the settings.
    """

    name: ClassVar[str]
    accepts: ClassVar[frozenset[str]]
    leaves: ClassVar[frozenset[str]]

    @property
    def needs_labels(self) -> bool: ...

    def run(self, model: nn.Module, context: Context) -> Done:
        """Carry the step out on a copy of the model."""
        ...


STEPS = Registry[str, type[Step]]("step")
