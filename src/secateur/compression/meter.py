"""Measuring models beside the same dense one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from secateur.coding import bake
from secateur.compression.config import MeasureConfig
from secateur.compression.material import Material
from secateur.compression.report import Measured
from secateur.graph import trace
from secateur.measure import (
    Latency,
    Metrics,
    PairedLatency,
    count_parameters,
    evaluate,
    latency,
    paired_latency,
    size_bytes,
)
from secateur.tensors import Inputs


@dataclass(frozen=True)
class Meter:
    """What a dense model and smaller ones are measured with.

    Attributes:
        dense: timed in turn with each of the others.
        material: its test part is what quality is measured on.
        config: how times are taken.
        inputs: gives so many samples as model inputs, on the model's device.
    """

    dense: nn.Module
    material: Material
    config: MeasureConfig
    inputs: Callable[[int], Inputs]

    def quality(self, model: nn.Module) -> Metrics | None:
        """Metrics on the test part; None where there is none, or no class labels."""
        test = self.material.test
        return evaluate(model, test) if test is not None and self.material.has_classes else None

    def pair(self, small: nn.Module) -> PairedLatency:
        """Time the dense model and another one in turn, for `max_seconds` at most."""
        inputs: Any = self.inputs(self.config.batch_size)
        threads = self.config.n_threads
        once = latency(self.dense, inputs, repeats=1, warmup=1, n_threads=threads).median_ms / 1000
        repeats = max(3, min(self.config.repeats, int(self.config.max_seconds / (2 * once))))
        warmup = min(10, repeats)
        return paired_latency(self.dense, small, inputs, repeats=repeats, warmup=warmup, n_threads=threads)

    def measured(self, model: nn.Module) -> Measured:
        """Everything of one model, timed beside the dense one. Coded weights are packed for the size alone."""
        plain = bake(model)
        return gather(model, plain, self.macs(plain), self.quality(plain), self.pair(plain).small)

    def dense_beside(self, pair: PairedLatency) -> Measured:
        """Everything of the dense model, whose time was taken along with another one's."""
        macs, quality = self.macs(self.dense), self.quality(self.dense)
        return gather(self.dense, bake(self.dense), macs, quality, pair.dense)

    def macs(self, model: nn.Module) -> int:
        """Multiply-accumulates of one sample."""
        return trace(model, self.inputs(1)).cost().macs


def gather(model: nn.Module, plain: nn.Module, macs: int, quality: Metrics | None, timed: Latency) -> Measured:
    """Put together what was measured apart; `plain` is the model without codings (`bake`)."""
    return Measured(
        accuracy=None if quality is None else quality.accuracy,
        precision=None if quality is None else quality.precision,
        recall=None if quality is None else quality.recall,
        f1=None if quality is None else quality.f1,
        params=count_parameters(plain),
        macs=macs,
        size_bytes=size_bytes(model),
        latency_ms=timed.median_ms,
        latency_p25_ms=timed.p25_ms,
        latency_p75_ms=timed.p75_ms,
    )


def times(pair: PairedLatency) -> dict[str, Any]:
    """The fields of a `Report` that a timing fills: the speedup with its quartiles, and the setting that it is of."""
    setting = {name: getattr(pair.small, name) for name in ("batch_size", "device", "dtype", "n_threads", "repeats")}
    return {
        "speedup": pair.speedup,
        "speedup_p25": pair.speedup_p25,
        "speedup_p75": pair.speedup_p75,
        "latency": setting,
    }
