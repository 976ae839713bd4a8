"""The settings of `compress`, composed of those of its steps."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from secateur.allocate import Budget, Lagrangian
from secateur.compensation.config import CompensateConfig
from secateur.criteria import Elimination
from secateur.errors import ConfigError
from secateur.planning import PruneConfig
from secateur.steps.prune import Prune
from secateur.train.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """How one set of labelled samples is cut; a `DataSplits` is cut already."""

    seed: int = 0  # of the cut
    val_fraction: float = 0.15  # to stop and choose by
    test_fraction: float = 0.2  # for the report alone

    def __post_init__(self) -> None:
        if not (
            0 < self.val_fraction < 1 and 0 < self.test_fraction < 1 and self.val_fraction + self.test_fraction < 1
        ):
            raise ConfigError(
                f"val_fraction={self.val_fraction} and test_fraction={self.test_fraction} must be positive and sum to"
                " less than 1."
            )


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """Data for criteria that measure on data."""

    n_samples: int = 1024  # at most, from the train split, or from unlabelled data

    def __post_init__(self) -> None:
        if self.n_samples < 1:
            raise ConfigError(f"n_samples={self.n_samples} must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class MeasureConfig:
    """How latency is taken."""

    batch_size: int = 1  # samples per forward
    repeats: int = 50  # timed forwards; fewer where that would take more than `max_seconds`
    max_seconds: float = 5.0  # per pair of models, about
    n_threads: int | None = None  # CPU threads; None leaves them as they are

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.repeats < 1 or not self.max_seconds > 0:
            raise ConfigError("batch_size and repeats must be at least 1, and max_seconds positive.")


@dataclass(frozen=True, kw_only=True)
class CompressConfig:
    """What `compress` does.

    "auto" fine-tunes where the data has labels. A model that is fine-tuned is pruned by L2, evenly, and left so until
    then; one that is not is pruned by elimination and compensated: structured optimal brain surgeon.

    Args:
        prune: how to choose what goes.
        n_rounds: how many times to prune, each time by the same factor, with compensation and fine-tuning in between.
        compensate: how to solve for the weights that are left, on inputs without labels; None leaves them.
        finetune: how to train afterwards; None leaves the weights as they are.
        calibration: data for criteria that measure on data.
        measure: how latency is taken.
        split: how one set of labelled samples is cut.
    """

    prune: PruneConfig | Literal["auto"] = "auto"
    n_rounds: int = 1
    compensate: CompensateConfig | Literal["auto"] | None = "auto"
    finetune: TrainConfig | Literal["auto"] | None = "auto"
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    measure: MeasureConfig = field(default_factory=MeasureConfig)
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        if self.n_rounds < 1:
            raise ConfigError(f"n_rounds={self.n_rounds} must be at least 1.")

    @property
    def seed(self) -> int:
        """Of what draws random numbers to score."""
        return PruneConfig().seed if self.prune == "auto" else self.prune.seed

    def settled(self, *, has_labels: bool) -> Settled:
        """What is done to data with labels, or without."""
        asked = TrainConfig() if self.finetune == "auto" else self.finetune
        finetune = asked if has_labels else None
        by_default = (PruneConfig(), None) if finetune is not None else (_eliminating(), CompensateConfig())
        return Settled(
            prune=by_default[0] if self.prune == "auto" else self.prune,
            n_rounds=self.n_rounds,
            compensate=by_default[1] if self.compensate == "auto" else self.compensate,
            finetune=finetune,
            measure=self.measure,
            notes=() if has_labels or self.finetune in (None, "auto") else (_NOT_TUNED,),
        )


_NOT_TUNED = "not fine-tuned, though `finetune` says how: the data has no labels."


def _eliminating() -> PruneConfig:
    return PruneConfig(criterion=Elimination(), method=Lagrangian())


@dataclass(frozen=True, kw_only=True)
class Settled:
    """A `CompressConfig` that leaves nothing open; `notes` say what of it was left out."""

    prune: PruneConfig
    n_rounds: int
    compensate: CompensateConfig | None
    finetune: TrainConfig | None
    measure: MeasureConfig
    notes: tuple[str, ...]

    def pruning(self, budget: Budget) -> Prune:
        """The step that does the first half of it."""
        return Prune(
            budget=replace(budget, drop_points=None),
            prune=self.prune,
            n_rounds=self.n_rounds,
            compensate=self.compensate,
            between=self.finetune,
        )
