"""A recipe: everything `secateur compress` does, as TOML. Written from the dataclasses of the steps, read strictly.

Sections are dataclasses and keys their fields, so each default and its explanation stand in the code once. A key that
is left out takes its default; the sections `[train]`, `[compensate]` and `[finetune]` are steps: without the section,
no such step. `[[steps]]` list several techniques in place of some of them.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.allocate import Budget
from secateur.compensation.config import CompensateConfig
from secateur.compression.config import CalibrationConfig, CompressConfig, MeasureConfig
from secateur.data.sources import ReadConfig
from secateur.errors import ConfigError, FileError, SecateurError
from secateur.files.decode import DecodeError, check_keys
from secateur.planning import PruneConfig
from secateur.sections import dataclass_in, read_section, write_section
from secateur.steps import STEPS as STEP_KINDS
from secateur.steps import Step
from secateur.steps.order import check_order
from secateur.train.augment import ShiftFlip
from secateur.train.config import TrainConfig

# One thread: the demo's kernels are too small to share, and its numbers then don't depend on the number of cores.
TRAIN = TrainConfig(
    epochs=30, lr=3e-3, weight_decay=0.05, label_smoothing=0.1, augment=ShiftFlip(shift_px=1), num_threads=1
)
FINETUNE = dataclasses.replace(TRAIN, epochs=15)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The model to compress."""

    source: str = "builtin:digits_cnn"  # builtin:, torchvision:, timm:, python:pkg.mod:fn, or a saved folder
    weights: str | None = None  # a .safetensors file with trained weights
    seed: int = 0  # of fresh weights


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data, cut into train, validation and test."""

    source: str = "digits"  # digits, npz:FILE, folder:DIR, csv:FILE or text:FILE
    seed: int = 0  # of the cut
    val_fraction: float = 0.15  # to stop and choose by
    test_fraction: float = 0.2  # for the final evaluation alone


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the result goes."""

    folder: str | None = None  # of the saved model; --output comes first
    is_compact: bool = False  # the fewest bytes: files are squeezed, which people can't read


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What `secateur compress` does. `Recipe()` is what `secateur demo` does.

    >>> read_recipe_text(write_recipe(Recipe())) == Recipe()
    True
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    read: ReadConfig = field(default_factory=ReadConfig)
    train: TrainConfig | None = TRAIN
    budget: Budget = field(default_factory=lambda: Budget(macs=0.4))
    prune: PruneConfig = field(default_factory=PruneConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    compensate: CompensateConfig | None = None
    finetune: TrainConfig | None = FINETUNE
    steps: tuple[Step, ...] = ()  # in place of budget, prune, compensate and finetune
    measure: MeasureConfig = field(default_factory=lambda: MeasureConfig(batch_size=64, n_threads=1))
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.train is not None and self.model.weights is not None:
            raise ConfigError(
                "model.weights gives trained weights and [train] would train over them. Delete the section [train],"
                " or leave the weights out."
            )
        if self.steps:
            check_order(self.steps)

    def compress_config(self) -> CompressConfig:
        """Return the part of it that `compress` takes."""
        return CompressConfig(
            prune=self.prune,
            compensate=self.compensate,
            finetune=self.finetune,
            calibration=self.calibration,
            measure=self.measure,
        )

    def with_seed(self, seed: int) -> Recipe:
        """Return the recipe with one seed for everything random."""

        names = ("model", "data", "train", "prune", "finetune")
        parts: dict[str, Any] = {name: _seeded(getattr(self, name), seed) for name in names}
        return dataclasses.replace(self, **parts, steps=tuple(_seeded(step, seed) for step in self.steps))


def _seeded(part: Any, seed: int) -> Any:
    """A copy with `seed` in the place of every number of that name, in the dataclasses inside too."""
    if not dataclasses.is_dataclass(part) or isinstance(part, type):
        return part
    new = {f.name: _seeded(getattr(part, f.name), seed) for f in dataclasses.fields(part)}
    return dataclasses.replace(part, **{**new, **({"seed": seed} if "seed" in new else {})})


INTRO = {
    "model": "The model to compress.",
    "data": "The data, cut into train, validation and test.",
    "read": "How the data is read.",
    "train": "A step: train the model first. Without the section, it is trained already.",
    "budget": "What may be kept, as fractions of the dense model or with a unit. Where several are given, all hold.",
    "prune": "How to choose what goes.",
    "calibration": "Data for criteria that measure on data.",
    "compensate": "A step: solve for the weights that are left, without labels. Without the section, no such step.",
    "finetune": "A step: train the pruned model. Without the section, its weights stay as they are.",
    "measure": "How latency is taken.",
    "output": "Where the result goes.",
}
REQUIRED = ("model", "data", "budget")
REPLACED = ("budget", "prune", "compensate", "finetune")
"""What [[steps]] stand in place of."""
STEPS = ("train", "compensate", "finetune")


def _read_step(table: Any) -> Step:
    if not isinstance(table, Mapping) or not isinstance(name := table.get("step"), str):
        raise DecodeError(f'A step is {table!r}, but must be a section [[steps]] with a name: step = "prune"')
    step: Step = read_section(STEP_KINDS[name], {key: v for key, v in table.items() if key != "step"}, f"steps.{name}")
    return step


def default_recipe() -> str:
    """Return the demo's recipe as TOML, with every setting and what it means.

    >>> default_recipe().splitlines()[:2]
    ['# The model to compress.', '[model]']
    """
    return write_recipe(Recipe())


def write_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML; `read_recipe_text` gives an equal one back.

    Raises:
        ConfigError: the criterion is a function, which can't be written down.
    """
    parts = []
    for section in dataclasses.fields(recipe):
        value = getattr(recipe, section.name)
        if section.name == "steps":
            parts += [_listed(step) for step in value]
            continue
        if recipe.steps and section.name in REPLACED:
            continue
        shown = dataclass_in(typing.get_type_hints(Recipe)[section.name])() if value is None else value
        lines = write_section(shown, section.name)
        if value is None:  # a step that is not taken shows what it would be
            lines = [f"# {line}" for line in lines]
        parts.append("\n".join([f"# {INTRO[section.name]}", *lines]) + "\n")
    return "\n".join(parts)


def _listed(step: Step) -> str:
    intro = (type(step).__doc__ or step.name).split("\n")[0]
    return (
        "\n".join([f"# {intro}", *write_section(step, "steps", is_listed=True, first=f'step = "{step.name}"')]) + "\n"
    )


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file, strictly.

    Raises:
        FileError: the file can't be read, or is not TOML.
        ConfigError: an unknown section or key (with the nearest known one), or a value out of range or of another type.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"The recipe '{path}' can't be read: {error}. `secateur recipe` prints one.") from error
    return read_recipe_text(text, where=f"'{path}'")


def read_recipe_text(text: str, *, where: str = "the recipe") -> Recipe:
    """`read_recipe`, of a text."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise FileError(f"{where} is not TOML: {error}. `secateur recipe` prints a recipe.") from error
    try:
        kinds = {f.name: f for f in dataclasses.fields(Recipe)}
        check_keys(data, list(kinds), where)
        given = [name for name in REQUIRED if name not in data and not (name in REPLACED and data.get("steps"))]
        if given:
            raise DecodeError(f"{where} lacks the section [{given[0]}]. `secateur recipe` prints all of them")
        hints = typing.get_type_hints(Recipe)
        steps = data.pop("steps", ())
        if steps and (both := [name for name in REPLACED if name in data]):
            raise DecodeError(f"[{both[0]}] and [[steps]] both say what to do. Put it into a step")
        replaced = ("steps", *(REPLACED if steps else ()))
        values: dict[str, Any] = {name: None for name in STEPS if name not in replaced}
        values |= {name: hints[name]() for name in kinds if name not in (*data, *STEPS, *replaced)}
        values |= {name: read_section(dataclass_in(hints[name]), table, name) for name, table in data.items()}
        values["steps"] = tuple(map(_read_step, steps))
        return Recipe(**values)
    except (DecodeError, SecateurError) as error:
        raise ConfigError(f"{where}: {error}") from error
