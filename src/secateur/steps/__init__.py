"""The steps of a recipe: each takes a model and gives a smaller one, with the edit that says what it did."""

from __future__ import annotations

from secateur.steps.activate import Activate
from secateur.steps.base import FORMS, STEPS, Context, Done, Step
from secateur.steps.drop import Drop
from secateur.steps.factorize import Factorize
from secateur.steps.finetune import Distill, Finetune
from secateur.steps.mix import Mix
from secateur.steps.prune import Prune
from secateur.steps.quantize import Quantize
from secateur.steps.quantize_inputs import QuantizeInputs
from secateur.steps.round import Round
from secateur.steps.share import Share
from secateur.steps.sparsify import Sparsify
from secateur.steps.words import Words

__all__ = [
    "FORMS",
    "STEPS",
    "Activate",
    "Context",
    "Distill",
    "Done",
    "Drop",
    "Factorize",
    "Finetune",
    "Mix",
    "Prune",
    "Quantize",
    "QuantizeInputs",
    "Round",
    "Share",
    "Sparsify",
    "Step",
    "Words",
]
