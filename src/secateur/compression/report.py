"""What `compress` and `run_steps` measured, as plain data."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import torch

from secateur._version import __version__
from secateur.compression.search import Try
from secateur.tables import text_table


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One model. Quality is on the test split, macro averages, and None where there are no class labels."""

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    params: int
    macs: int  # of one sample
    size_bytes: int  # of the safetensors file
    latency_ms: float  # median of one forward; batch and device are in `Report.latency`
    latency_p25_ms: float
    latency_p75_ms: float


@dataclass(frozen=True, kw_only=True)
class Report(ABC):
    """What every report holds: the dense model, the time of the last one beside it, and what the numbers depend on.

    `to_dict` is JSON.
    """

    dense: Measured
    speedup: float  # dense time / small time, median over alternating forwards
    speedup_p25: float
    speedup_p75: float
    latency: dict[str, Any]  # batch_size, device, dtype, n_threads, repeats
    n_samples: dict[str, int]
    seeds: dict[str, int]
    versions: dict[str, str]
    seconds: dict[str, float]

    @abstractmethod
    def stages(self) -> dict[str, Measured]:
        """Return the models that were measured, by name; the dense one is the first."""

    @abstractmethod
    def further_lines(self) -> list[str]:
        """What there is to say below the table of models."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def latency_line(self) -> str:
        """Say what the times mean, and the paired speedup with its quartiles."""
        how = self.latency
        return (
            f"latency per batch of {how['batch_size']} on {how['device']}, {how['dtype']}, {how['n_threads']} threads,"
            f" {how['repeats']} runs; {self.speedup:.2f}x as fast as the dense model"
            f" [{self.speedup_p25:.2f}, {self.speedup_p75:.2f}]"
        )

    def __str__(self) -> str:
        table = text_table(HEADER, [row(name, m) for name, m in self.stages().items()])
        return "\n".join([table, self.latency_line(), *self.further_lines()])


@dataclass(frozen=True, kw_only=True)
class CompressReport(Report):
    """Before, between and after `compress`, and how it came about.

    Dense and small models are timed in turn, once: pruned and fine-tuned are one network with other weights.
    """

    pruned: Measured
    finetuned: Measured | None  # None where nothing was fine-tuned
    verify: str
    max_difference: float | None  # see `VerifyReport`
    budget: dict[str, float]
    tries: tuple[Try, ...]  # of a budget on a metric, in order
    skipped: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]

    def stages(self) -> dict[str, Measured]:
        """`dense`, `pruned`, and `finetuned` where there is one."""
        found = {"dense": self.dense, "pruned": self.pruned, "finetuned": self.finetuned}
        return {name: measured for name, measured in found.items() if measured is not None}

    def further_lines(self) -> list[str]:
        """The search, the proof, the notes."""
        tried = [self.search_line()] if self.tries else []
        return [*tried, self.verify, *(f"note: {note}" for note in self.notes)]

    def search_line(self) -> str:
        """Say which fractions of MACs were tried for a budget on a metric, and what each lost."""
        tried = ", ".join(f"{t.kept:.3f} ({t.drop_points:.2f}{'' if t.is_met else ' too many'})" for t in self.tries)
        return f"tried on validation data, MACs kept and points lost: {tried}"


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step: what it left, what it says, how long it took."""

    name: str
    measured: Measured
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    facts: dict[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class StepsReport(Report):
    """The dense model and the one after each step."""

    steps: tuple[StepReport, ...]

    def stages(self) -> dict[str, Measured]:
        """`dense`, `1 prune`, …"""
        return {"dense": self.dense, **{f"{i} {s.name}": s.measured for i, s in enumerate(self.steps, 1)}}

    def further_lines(self) -> list[str]:
        """What the steps say, each with its number and name."""
        lines = []
        for i, step in enumerate(self.steps, 1):
            lines += [f"{i} {step.name}: {line}" for note in step.notes for line in note.splitlines()]
            if step.skipped:
                lines.append(f"{i} {step.name}: left alone {len(step.skipped)}, the first {': '.join(step.skipped[0])}")
        return lines


HEADER = ("model", "accuracy", "F1", "params", "MACs", "bytes", "latency ms", "25 % to 75 %")


def row(name: str, measured: Measured) -> tuple[str, ...]:
    """One line of a table of models."""
    m = measured
    quality = ["–" if value is None else f"{value:.2%}" for value in (m.accuracy, m.f1)]
    spread = f"{m.latency_p25_ms:.3f} to {m.latency_p75_ms:.3f}"
    counts = (f"{m.params:,}", f"{m.macs:,}", f"{m.size_bytes:,}", f"{m.latency_ms:.3f}")
    return (name, *quality, *counts, spread)


def versions() -> dict[str, str]:
    """Return the versions that results depend on."""
    return {"secateur": __version__, "torch": torch.__version__, "python": platform.python_version()}
