"""What is compared: cells, the networks that they start from, and the grid that lists them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

from secateur.calls import make
from secateur.compare.subjects import SUBJECTS, Subject
from secateur.compare.techniques import COUNTED, DENSE, PRUNINGS, QUANTIZATIONS, RANDOM, SCRATCH
from secateur.compression.config import MeasureConfig
from secateur.errors import ConfigError


@dataclass(frozen=True, kw_only=True, order=True)
class Start:
    """A network that is trained from nothing: the dense one, or a narrower one that costs `budget` of it."""

    model: str
    fold: int
    seed: int
    budget: float = 1.0


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One network, smaller by one pruning and one quantization, on one fold with one seed."""

    model: str  # of SUBJECTS, with arguments: "digits_cnn?width=8"
    pruning: str  # of PRUNINGS
    quantization: str  # of QUANTIZATIONS
    budget: float  # what the pruning may keep, in (0, 1]; see `PRUNINGS`
    fold: int
    seed: int

    @property
    def start(self) -> Start:
        """The network that it starts from, which other cells start from as well."""
        budget = self.budget if self.pruning == SCRATCH else 1.0
        return Start(model=self.model, fold=self.fold, seed=self.seed, budget=budget)

    @property
    def dense(self) -> Start:
        """The network that it is compared with."""
        return replace(self.start, budget=1.0)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Every model by every pruning, quantization and budget, on every fold with every seed.

    The baselines are always there: the dense network, random pruning, and a narrower one trained from nothing.

    >>> len(Grid(models=("digits_mlp",), prunings=("l2",), budgets=(0.5,), folds=2).cells())
    8
    """

    models: tuple[str, ...] = ("digits_cnn",)  # names of secateur.compare.SUBJECTS, with arguments after a "?"
    prunings: tuple[str, ...] = ("l2",)  # names of secateur.compare.PRUNINGS
    quantizations: tuple[str, ...] = ("none",)  # names of secateur.compare.QUANTIZATIONS
    budgets: tuple[float, ...] = (0.5,)  # what a pruning may keep
    cost: str = "macs"  # what a budget of widths or ranks counts, of secateur.compare.techniques.COUNTED
    folds: int = 3  # parts of the samples, each of which is the test part once; 1: the model's held-out samples are
    seeds: tuple[int, ...] = (0,)  # of the cut into folds, of fresh weights and of whatever is drawn
    val_fraction: float = 0.15  # of a training part, to stop and choose by
    n_calibration: int = 256  # samples of a training part that prunings measure on, at most
    measure: MeasureConfig = field(
        default_factory=lambda: MeasureConfig(batch_size=32, repeats=20, max_seconds=0.2, n_threads=1)
    )

    def __post_init__(self) -> None:
        for kind, names in ((PRUNINGS, self.prunings), (QUANTIZATIONS, self.quantizations)):
            for name in names:
                kind[name]  # an unknown name is an error
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, tuple) and len(value) != len(set(value)):
                raise ConfigError(f"{f.name}={value} has something twice.")
        if not (self.models and self.seeds and self.folds >= 1 and min(self.seeds) >= 0):
            raise ConfigError("A grid needs a model, seeds from 0 on, and at least 1 fold.")
        if self.cost not in COUNTED:
            raise ConfigError(f"cost='{self.cost}' is none of {', '.join(COUNTED)}.")
        if not 0 < self.val_fraction < 0.5 or self.n_calibration < 1:
            raise ConfigError(f"val_fraction={self.val_fraction} must lie in (0, 0.5), n_calibration be at least 1.")
        if wrong := [budget for budget in self.budgets if not 0 < budget < 1]:
            raise ConfigError(f"budget {wrong[0]} is outside (0, 1). It is the fraction kept: 0.5 keeps half.")
        self.subjects()

    def subjects(self) -> dict[str, Subject]:
        """The models with their data, by their texts."""
        return {text: make(SUBJECTS, text) for text in self.models}

    def cells(self) -> list[Cell]:
        """All of them in order: what starts from one network stands together."""
        smaller = tuple(dict.fromkeys((*self.prunings, RANDOM, SCRATCH)))
        ways = [(DENSE, 1.0)] + [(name, budget) for budget in self.budgets for name in smaller if name != DENSE]
        quantizations = tuple(dict.fromkeys((DENSE, *self.quantizations)))
        return [
            Cell(model=model, pruning=pruning, quantization=quantization, budget=budget, fold=fold, seed=seed)
            for model in self.models
            for seed in self.seeds
            for fold in range(self.folds)
            for pruning, budget in ways
            for quantization in quantizations
        ]

    def starts(self) -> list[Start]:
        """The networks that have to be trained before the cells."""
        cells = self.cells()
        return list(dict.fromkeys(start for cell in cells for start in (cell.dense, cell.start)))
