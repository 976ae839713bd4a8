"""Training: `fit_(model, train, val, TrainConfig(...))` changes the model in place and returns its `History`."""

from __future__ import annotations

from secateur.train.augment import AUGMENTS, Augment, ShiftFlip, WordDropout
from secateur.train.config import OPTIMIZERS, TrainConfig
from secateur.train.history import EpochRecord, History
from secateur.train.loop import Callback, fit_
from secateur.train.losses import Loss, compute_loss, cross_entropy
from secateur.train.regularizers import REGULARIZERS, GroupLasso, Growing, Polarization, Regularizer
from secateur.train.schedule import EpochBatches, cosine_lr
from secateur.train.views import Views

__all__ = [
    "AUGMENTS",
    "OPTIMIZERS",
    "REGULARIZERS",
    "Augment",
    "Callback",
    "EpochBatches",
    "EpochRecord",
    "GroupLasso",
    "Growing",
    "History",
    "Loss",
    "Polarization",
    "Regularizer",
    "ShiftFlip",
    "TrainConfig",
    "Views",
    "WordDropout",
    "compute_loss",
    "cosine_lr",
    "cross_entropy",
    "fit_",
]
