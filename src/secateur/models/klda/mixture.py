"""Where the mixture of KLDA starts: from EM on the latent points, or from classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.mixture import GaussianMixture
from torch import Tensor

from secateur.models.klda.network import MixtureHead


def choose_mixture(
    z: NDArray[Any], counts: Sequence[int], covariance: str, n_init: int, seed: int
) -> tuple[GaussianMixture, dict[int, float]]:
    """Fit a mixture of each size; return the one of least BIC, and all BICs."""
    points = z.astype(np.float64)
    floor = 1e-6 * max(float(points.var(0).mean()), 1e-6)
    fitted = [
        GaussianMixture(k, covariance_type=covariance, n_init=n_init, reg_covar=floor, random_state=seed).fit(points)
        for k in counts
    ]
    bic = {mixture.n_components: float(mixture.bic(points)) for mixture in fitted}
    return min(fitted, key=lambda mixture: bic[mixture.n_components]), bic


def start_from_classes_(head: MixtureHead, z: NDArray[Any], codes: Tensor) -> None:
    """Put a component on each class: its mean, the spread of all classes around theirs, its share."""
    points = torch.from_numpy(z).double()
    one_hot = torch.nn.functional.one_hot(codes).double()
    means = (one_hot.t() @ points) / one_hot.sum(0).unsqueeze(1)
    scale = (points - means[codes]).std(0, correction=0).clamp(min=1e-3).reciprocal()
    head.set_mixture_(one_hot.mean(0), means, scale)
