"""Measures of clusters, against plain versions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from secateur.errors import DataError
from secateur.measure import score_clusters

RNG = np.random.default_rng(0)
CLASSES, CLUSTERS = RNG.integers(0, 3, 30), RNG.integers(0, 4, 30)


def test_measures_are_those_of_their_definitions():
    points = RNG.normal(size=(30, 2))
    found = score_clusters(CLASSES, CLUSTERS, points=points, log_densities=np.arange(30.0))
    pairs = list(itertools.combinations(range(30), 2))
    same, alike = ([labels[i] == labels[j] for i, j in pairs] for labels in (CLASSES, CLUSTERS))
    both, expected = np.sum(np.logical_and(same, alike)), np.sum(same) * np.sum(alike) / len(pairs)
    most = (np.sum(same) + np.sum(alike)) / 2
    assert found.adjusted_rand == pytest.approx((both - expected) / (most - expected))
    joint = np.array([[np.mean((a == CLASSES) & (b == CLUSTERS)) for b in range(4)] for a in range(3)])
    p, q = joint.sum(1), joint.sum(0)
    information = sum(
        joint[a, b] * np.log(joint[a, b] / p[a] / q[b]) for a in range(3) for b in range(4) if joint[a, b]
    )
    assert found.nmi == pytest.approx(information / (-(p * np.log(p)).sum() / 2 - (q * np.log(q)).sum() / 2))
    assert found.purity == pytest.approx(joint.max(0).sum())
    gaps = []
    for i in range(30):
        distance = np.linalg.norm(points - points[i], axis=1)
        others = [distance[c == CLUSTERS].mean() for c in range(4) if c != CLUSTERS[i]]
        own = distance[CLUSTERS[i] == CLUSTERS].sum() / (np.sum(CLUSTERS[i] == CLUSTERS) - 1)
        gaps.append((min(others) - own) / max(min(others), own))
    assert found.silhouette == pytest.approx(np.mean(gaps))
    assert found.log_likelihood == 14.5
    assert found.n_clusters == 4


def test_names_of_clusters_do_not_matter():
    found = score_clusters(list("aabbcc"), [2, 2, 9, 9, 4, 4])
    assert (found.adjusted_rand, found.nmi, found.purity) == pytest.approx((1, 1, 1))
    assert found.silhouette is None
    assert str(found) == "adjusted Rand 1.0000, NMI 1.0000, purity 1.0000 of 3 clusters on 6 samples"


def test_a_single_cluster_has_no_silhouette():
    assert score_clusters([0, 1, 0], [5, 5, 5], points=np.eye(3)).silhouette is None


@pytest.mark.parametrize(("classes", "clusters"), [([0, 1], [0]), ([], []), ([[0]], [[0]])])
def test_what_does_not_fit_is_named(classes, clusters):
    with pytest.raises(DataError, match="do not fit"):
        score_clusters(classes, clusters)
