"""A recipe: everything `secateur compress` does, as TOML. Written from the dataclasses of the steps, read strictly.

Sections are dataclasses and keys their fields, so each default and its explanation stand in the code once. A key that
is left out takes its default; the sections `[train]` and `[finetune]` are steps: without the section, no such step.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import tomllib
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.allocate import Budget, make_method
from secateur.allocate.methods import ALLOCATIONS
from secateur.compensation.config import CompensateConfig, ReconstructConfig
from secateur.compression.config import CalibrationConfig, CompressConfig, MeasureConfig
from secateur.criteria import from_dict, make_criterion, to_dict
from secateur.data.sources import ReadConfig
from secateur.errors import ConfigError, FileError, SecateurError
from secateur.files.decode import DecodeError, check_keys, decode
from secateur.planning import PruneConfig
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

    source: str = "digits"  # digits, npz:FILE, folder:DIR or csv:FILE
    seed: int = 0  # of the cut
    val_fraction: float = 0.15  # to stop and choose by
    test_fraction: float = 0.2  # for the final evaluation alone


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where the result goes."""

    folder: str | None = None  # of the saved model; --output comes first


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
    measure: MeasureConfig = field(default_factory=lambda: MeasureConfig(batch_size=64, n_threads=1))
    output: OutputConfig = field(default_factory=OutputConfig)

    def __post_init__(self) -> None:
        if self.train is not None and self.model.weights is not None:
            raise ConfigError(
                "model.weights gives trained weights and [train] would train over them. Delete the section [train],"
                " or leave the weights out."
            )

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

        def seeded(part: Any) -> Any:
            return None if part is None else dataclasses.replace(part, seed=seed)

        return dataclasses.replace(
            self,
            **{name: seeded(getattr(self, name)) for name in ("model", "data", "train", "prune", "finetune")},
        )


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
STEPS = ("train", "compensate", "finetune")


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
        shown = _dataclass_in(typing.get_type_hints(Recipe)[section.name])() if value is None else value
        lines = [f"[{section.name}]", *_lines(shown)]
        if value is None:  # a step that is not taken shows what it would be
            lines = [f"# {line}" for line in lines]
        parts.append("\n".join([f"# {INTRO[section.name]}", *lines]) + "\n")
    return "\n".join(parts)


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
        if missing := [name for name in REQUIRED if name not in data]:
            raise DecodeError(f"{where} lacks the section [{missing[0]}]. `secateur recipe` prints all of them")
        hints = typing.get_type_hints(Recipe)
        values: dict[str, Any] = dict.fromkeys(STEPS)
        values |= {name: hints[name]() for name in kinds if name not in data and name not in STEPS}
        values |= {name: _section(_dataclass_in(hints[name]), table, name) for name, table in data.items()}
        return Recipe(**values)
    except (DecodeError, SecateurError) as error:
        raise ConfigError(f"{where}: {error}") from error


def _dataclass_in(hint: Any) -> Any:
    return next((kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)), hint)


def _section(kind: Any, table: Any, where: str) -> Any:
    if not isinstance(table, Mapping):
        raise DecodeError(f"{where} is {table!r}, but must be a section: [{where}]")
    hints = typing.get_type_hints(kind)
    check_keys(table, list(hints), f"[{where}]")
    values = {}
    for key, value in table.items():
        reader = _READERS.get((kind, key))
        values[key] = decode(hints[key], value, f"{where}.{key}") if reader is None else reader(value)
    try:
        return kind(**values)
    except TypeError as error:
        raise DecodeError(f"[{where}] can't be read: {error}") from error
    except SecateurError as error:
        raise ConfigError(f"[{where}] {error}") from error


def _read_criterion(value: Any) -> Any:
    return from_dict(value) if isinstance(value, Mapping) else make_criterion(decode(str, value, "prune.criterion"))


def _read_method(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return make_method(decode(str, value, "prune.method"))
    settings = dict(value)
    kind = ALLOCATIONS[decode(str, settings.pop("name", None), "prune.method.name")]
    return decode(kind, settings, "prune.method", is_partial=True)


def _read_augment(value: Any) -> Any:
    return TrainConfig.from_dict({"augment": decode(dict[str, Any], value, "augment")}).augment


def _read_reconstruct(value: Any) -> Any:
    if value is False:
        return None
    return decode(ReconstructConfig, value, "compensate.reconstruct", is_partial=True)


_READERS: dict[tuple[Any, str], Callable[[Any], Any]] = {
    (PruneConfig, "criterion"): _read_criterion,
    (PruneConfig, "method"): _read_method,
    (TrainConfig, "augment"): _read_augment,
    (CompensateConfig, "reconstruct"): _read_reconstruct,
}


def _plain(kind: type, name: str, value: Any) -> Any:
    """A field's value as TOML has it."""
    if (kind, name) == (PruneConfig, "criterion"):
        return to_dict(make_criterion(value))
    if (kind, name) == (PruneConfig, "method"):
        method = make_method(value)
        return {"name": method.name, **dataclasses.asdict(method)}
    if name == "augment" and value is not None:
        return value.to_dict()
    if (kind, name) == (CompensateConfig, "reconstruct"):
        return False if value is None else dataclasses.asdict(value)
    return value


def _lines(value: Any) -> Iterator[str]:
    notes = field_notes(type(value))
    for f in dataclasses.fields(value):
        plain = _plain(type(value), f.name, getattr(value, f.name))
        if note := notes.get(f.name):
            yield f"# {note}"
        yield f"# {f.name} is unset" if plain is None else f"{f.name} = {_toml(plain)}"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(map(_toml, value)) + "]"


def field_notes(kind: type) -> dict[str, str]:
    """Return what the code says about each field of a dataclass: the comment on its line, or its entry under `Args:`.

    >>> field_notes(DataConfig)["seed"]
    'of the cut'
    >>> field_notes(Budget)["macs"]
    'multiply-accumulates of the whole model.'
    """
    notes: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if dataclasses.is_dataclass(owner):
            entries = re.findall(
                r"^ {4,8}(\w[\w, ]*): (.+(?:\n {8,12}\S.*)*)", inspect.cleandoc(owner.__doc__ or ""), re.M
            )
            for names, text in entries:
                notes |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
            notes |= dict(re.findall(r"^ {4}(\w+): .*?  # (.+)$", inspect.getsource(owner), re.M))
    return notes
