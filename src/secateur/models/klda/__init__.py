"""KLDA: clustering with an encoder and a Gaussian mixture, learned and pruned by Kullback-Leibler divergence."""

from __future__ import annotations

from secateur.models.klda.estimator import KLDA
from secateur.models.klda.network import KLDANet, MixtureHead, klda
from secateur.models.klda.toy import fruit_baskets

__all__ = ["KLDA", "KLDANet", "MixtureHead", "fruit_baskets", "klda"]
