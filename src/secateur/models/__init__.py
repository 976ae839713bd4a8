"""The few reference networks that examples and benchmarks need; `MODELS[name](...)` builds one with fresh weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.models.catalog import MODELS
from secateur.models.cifar_resnet import CifarResNet, cifar_resnet20, cifar_resnet56
from secateur.models.digits_cnn import DigitsCNN, digits_cnn
from secateur.models.klda import KLDANet, fruit_baskets, klda
from secateur.models.mlp import MLP, mlp
from secateur.models.text_cnn import TextCNN, text_cnn

if TYPE_CHECKING:
    from secateur.models.klda import KLDA

__all__ = [
    "KLDA",
    "MLP",
    "MODELS",
    "CifarResNet",
    "DigitsCNN",
    "KLDANet",
    "TextCNN",
    "cifar_resnet20",
    "cifar_resnet56",
    "digits_cnn",
    "fruit_baskets",
    "klda",
    "mlp",
    "text_cnn",
]


def __getattr__(name: str) -> Any:
    if name == "KLDA":
        from secateur.models.klda import KLDA

        return KLDA
    raise AttributeError(f"module 'secateur.models' has no attribute {name!r}")
