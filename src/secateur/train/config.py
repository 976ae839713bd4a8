"""The settings of a training run, and the optimizers that they can name."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError
from secateur.precision import check_precision
from secateur.registry import Registry
from secateur.train.augment import AUGMENTS, Augment
from secateur.train.regularizers import REGULARIZERS, Regularizer

Groups = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train. Round-trips through `to_dict` / `from_dict`; an unknown key is an error.

    >>> config = TrainConfig(epochs=3)
    >>> TrainConfig.from_dict(config.to_dict()) == config
    True
    """

    epochs: int = 10
    batch_size: int = 64  # samples per step, over all processes together
    lr: float = 1e-3  # at the top of the schedule: linear warm-up, then half a cosine to 0
    weight_decay: float = 1e-2  # on weights of two or more axes; never on biases and norms
    momentum: float = 0.9  # of sgd (Nesterov); the first beta of adamw
    optimizer: str = "adamw"  # a key of OPTIMIZERS
    warmup_fraction: float = 0.05  # of all steps
    label_smoothing: float = 0.0
    grad_clip: float | None = None  # largest norm of the whole gradient
    augment: Augment | None = None  # applied to x of (x, y) batches
    regularizers: tuple[Regularizer, ...] = ()  # penalties that are added to the loss
    patience: int | None = None  # stop after so many epochs without a new lowest validation loss
    precision: str = "fp32"  # or bf16: products and convolutions in bfloat16 (autocast); or auto: where that is fast
    is_channels_last: bool = False  # images lie in memory pixel by pixel, which convolutions are faster on
    is_compiled: bool = False  # train a program made by torch.compile: for long runs, since making it takes minutes
    seed: int = 0
    num_threads: int | None = None  # CPU threads during training; None leaves them as they are
    checkpoint_every: int = 1  # epochs

    def __post_init__(self) -> None:
        rules = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": self.lr > 0 and math.isfinite(self.lr),
            "weight_decay": self.weight_decay >= 0,
            "momentum": 0 <= self.momentum < 1,
            "warmup_fraction": 0 <= self.warmup_fraction < 1,
            "label_smoothing": 0 <= self.label_smoothing < 1,
            "grad_clip": self.grad_clip is None or self.grad_clip > 0,
            "patience": self.patience is None or self.patience >= 1,
            "seed": self.seed >= 0,
            "num_threads": self.num_threads is None or self.num_threads >= 1,
            "checkpoint_every": self.checkpoint_every >= 1,
        }
        wrong = [f"{name}={getattr(self, name)}" for name, holds in rules.items() if not holds]
        if wrong:
            raise ConfigError(f"Out of range: {', '.join(wrong)}. Counts are at least 1, fractions lie in [0, 1).")
        check_precision(self.precision)
        if self.optimizer not in OPTIMIZERS:
            raise ConfigError(f"No optimizer '{self.optimizer}'. Known: {', '.join(sorted(OPTIMIZERS))}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data for JSON; augmentation and penalties become {"kind": ..., their fields}."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.augment is not None:
            data["augment"] = self.augment.to_dict()
        data["regularizers"] = [regularizer.to_dict() for regularizer in self.regularizers]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_dict` gave."""
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := sorted(set(data) - set(known)):
            raise ConfigError(f"Unknown training settings: {', '.join(unknown)}. Known: {', '.join(known)}.")
        values = dict(data)
        if isinstance(values.get("augment"), Mapping):
            values["augment"] = _of_kind(AUGMENTS, values["augment"])
        if "regularizers" in values:
            values["regularizers"] = tuple(_of_kind(REGULARIZERS, fields) for fields in values["regularizers"])
        return cls(**values)


def _of_kind(kinds: Registry[str, type[Any]], data: Any) -> Any:
    """Make what {"kind": a key, its fields} describes."""
    fields = dict(data) if isinstance(data, Mapping) else {}
    kind = fields.pop("kind", None)
    if kind not in kinds:
        raise ConfigError(f"No {kinds.kind} '{kind}'. Known: {', '.join(sorted(kinds))}.")
    try:
        return kinds[kind](**fields)
    except TypeError as err:
        raise ConfigError(f"{kinds.kind.capitalize()} '{kind}' does not take {sorted(fields)}: {err}") from err


Optimizers = Callable[[Groups, TrainConfig], torch.optim.Optimizer]
OPTIMIZERS: Registry[str, Optimizers] = Registry("optimizer")


@OPTIMIZERS.register("adamw")
def adamw(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter, ICLR 2019."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))


@OPTIMIZERS.register("sgd")
def sgd(groups: Groups, config: TrainConfig) -> torch.optim.Optimizer:
    """Stochastic gradient descent, with Nesterov's momentum if `momentum` is not 0."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the optimizer over the parameters that learn: weights with decay, biases and norms without."""
    learning = [p for p in model.parameters() if p.requires_grad]
    groups: Groups = [
        {"params": [p for p in learning if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in learning if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return OPTIMIZERS[config.optimizer]([group for group in groups if group["params"]], config)
