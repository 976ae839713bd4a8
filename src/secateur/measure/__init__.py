"""Measurements: what a model is worth (metrics), how fast it runs (latency), how large it is (size)."""

from __future__ import annotations

from secateur.measure.clustering import ClusterMetrics, purity, score_clusters
from secateur.measure.latency import (
    Comparison,
    Latency,
    PairedLatency,
    Speedup,
    compare_latency,
    latency,
    paired_latency,
)
from secateur.measure.metrics import Metrics, agreement, evaluate, predict, score_logits
from secateur.measure.realised import Measurement, measure_models
from secateur.measure.runtimes import RUNTIMES
from secateur.measure.size import count_parameters, size_bytes, unique_state

__all__ = [
    "RUNTIMES",
    "ClusterMetrics",
    "Comparison",
    "Latency",
    "Measurement",
    "Metrics",
    "PairedLatency",
    "Speedup",
    "agreement",
    "compare_latency",
    "count_parameters",
    "evaluate",
    "latency",
    "measure_models",
    "paired_latency",
    "predict",
    "purity",
    "score_clusters",
    "score_logits",
    "size_bytes",
    "unique_state",
]
