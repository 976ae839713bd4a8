"""How well clusters fit known classes, and how well they are told apart.

What the numbers mean: `adjusted_rand` is the fraction of pairs that both divisions treat alike, corrected for chance (0
at random, 1 where they are the same). `nmi` is mutual information over the mean of both entropies, in [0, 1]. `purity`
is the fraction of samples in the commonest class of their cluster; it rises with the number of clusters. `silhouette`,
in [-1, 1], compares distances to the own cluster and to the nearest other; it needs no classes. `log_likelihood` is the
mean log density per sample, in nats: it compares models of one latent space, not of several.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from secateur.errors import DataError

MAX_SILHOUETTE = 2000  # samples that the silhouette is measured on: it takes all distances


@dataclass(frozen=True, kw_only=True)
class ClusterMetrics:
    """Quality of a clustering; see the top of this file. What could not be measured is None."""

    adjusted_rand: float
    nmi: float
    purity: float
    silhouette: float | None  # None without points, or with a single cluster
    log_likelihood: float | None
    n_clusters: int  # that hold samples
    n_samples: int

    def __str__(self) -> str:
        return (
            f"adjusted Rand {self.adjusted_rand:.4f}, NMI {self.nmi:.4f}, purity {self.purity:.4f} of"
            f" {self.n_clusters} clusters on {self.n_samples} samples"
        )


def score_clusters(
    classes: ArrayLike,
    clusters: ArrayLike,
    *,
    points: ArrayLike | None = None,
    log_densities: ArrayLike | None = None,
    seed: int = 0,
) -> ClusterMetrics:
    """Compare clusters with classes.

    Args:
        classes, clusters: (N,) of any kind.
        points: (N, D), for the silhouette; of more than 2,000, so many are drawn.
        log_densities: (N,) in nats.
        seed: of that draw.
    Raises:
        DataError: the lengths differ, or there are no samples.

    >>> score_clusters(["a", "a", "b", "b"], [1, 1, 0, 0]).nmi
    1.0
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    known, found = np.asarray(classes), np.asarray(clusters)
    if known.ndim != 1 or known.shape != found.shape or not len(known):
        raise DataError(f"Classes {known.shape} and clusters {found.shape} do not fit. Pass one of each per sample.")
    return ClusterMetrics(
        adjusted_rand=float(adjusted_rand_score(known, found)),
        nmi=float(normalized_mutual_info_score(known, found)),
        purity=purity(known, found),
        silhouette=None if points is None else _silhouette(np.asarray(points), found, seed),
        log_likelihood=None if log_densities is None else float(np.mean(np.asarray(log_densities))),
        n_clusters=len(np.unique(found)),
        n_samples=len(known),
    )


def purity(classes: ArrayLike, clusters: ArrayLike) -> float:
    """Return 1/N * sum over clusters of the count of their commonest class.

    >>> purity(["a", "a", "b", "b"], [0, 0, 0, 1])
    0.75
    """
    from sklearn.metrics.cluster import contingency_matrix

    table = contingency_matrix(np.asarray(classes), np.asarray(clusters))
    return float(table.max(0).sum() / table.sum())


def _silhouette(points: NDArray[Any], clusters: NDArray[Any], seed: int) -> float | None:
    from sklearn.metrics import silhouette_score

    drawn = np.random.default_rng(seed).permutation(len(points))[:MAX_SILHOUETTE]
    some = clusters[drawn]
    if not 1 < len(np.unique(some)) < len(some):
        return None
    return float(silhouette_score(points[drawn], some))
