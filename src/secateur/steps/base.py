"""The contract of a step, and what a step may use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import nn
from torch.utils.data import Dataset

from secateur.criteria import cross_entropy
from secateur.edits import Edit
from secateur.planning import Loss
from secateur.registry import Registry
from secateur.tensors import Inputs

FORMS = {
    "masked": "weights that a mask keeps at zero",
    "factored": "weights as products of smaller ones",
    "quantized": "weights on a grid of few levels",
    "shared": "weights that come from a codebook",
}
"""What a step may leave weights as, beside plain numbers."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a step may use beside the model.

    Attributes:
        dense: the model as it was before the first step; it is not changed.
        example: one sample as model inputs, on the model's device.
        calibration: gives batches of training samples, with labels where there are any, afresh at each call.
        train, val: labelled samples to train on and to choose by, where there are any.
        loss: of (outputs, labels).
        seed: of everything random in a step that has no seed of its own.
        progress: draw bars on stderr, if that is a terminal.
    """

    dense: nn.Module
    example: Inputs
    calibration: Callable[[], Any]
    train: Dataset[Any] | None = None
    val: Dataset[Any] | None = None
    loss: Loss = cross_entropy
    seed: int = 0
    progress: bool = False


@dataclass(frozen=True)
class Done:
    """What a step gives back.

    Attributes:
        model: the new model in eval mode; the one that the step was given is untouched.
        edit: what changed in its structure; None where only values did.
        skipped: what was left alone, as (name, reason).
        notes: what the report should say: what was reached, and what was not.
        facts: plain data for the report (errors by layer, kept layers, …).
    """

    model: nn.Module
    edit: Edit | None = None
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
        needs_labels: it can't run on inputs alone.
    """

    name: ClassVar[str]
    accepts: ClassVar[frozenset[str]]
    leaves: ClassVar[frozenset[str]]
    needs_labels: ClassVar[bool]

    def run(self, model: nn.Module, context: Context) -> Done:
        """Carry the step out on a copy of the model."""
        ...


STEPS = Registry[str, type[Step]]("step")
