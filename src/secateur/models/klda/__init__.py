"""KLDA: clustering with an encoder and a Gaussian mixture, learned and pruned by Kullback-Leibler divergence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from secateur.models.klda.network import KLDANet, MixtureHead, klda
from secateur.models.klda.toy import fruit_baskets

if TYPE_CHECKING:
    from secateur.models.klda.estimator import KLDA

__all__ = ["KLDA", "KLDANet", "MixtureHead", "fruit_baskets", "klda"]


def __getattr__(name: str) -> Any:
    if name == "KLDA":  # it needs scikit-learn and training, which building a network does not
        from secateur.models.klda.estimator import KLDA

        return KLDA
    raise AttributeError(f"module 'secateur.models.klda' has no attribute {name!r}")
