"""Grids as TOML files, read strictly, and those that come with Secateur."""

from __future__ import annotations

import tomllib
from pathlib import Path

from secateur.compare.cells import Grid
from secateur.compare.techniques import DENSE, PRUNINGS, QUANTIZATIONS
from secateur.errors import ConfigError, FileError, SecateurError
from secateur.files.decode import DecodeError
from secateur.registry import Registry
from secateur.sections import read_section

PRESETS: Registry[str, Grid] = Registry("preset")
PRESETS["mission"] = Grid(
    models=("digits_cnn?width=8", "text_cnn", "klda"),
    prunings=tuple(name for name in PRUNINGS if name != DENSE),
    quantizations=tuple(QUANTIZATIONS),
    budgets=(0.5, 0.25),
    folds=3,
)


def read_grid(path: str | Path) -> Grid:
    """Read a grid: its keys are the fields of `Grid`, and `[measure]` is a section.

    Raises:
        FileError: the file can't be read, or is not TOML.
        ConfigError: an unknown key (with the nearest known one), or a value out of range or of another type.
    """
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FileError(f"The grid '{path}' can't be read: {error}.") from error
    try:
        grid: Grid = read_section(Grid, data, "grid")
    except (DecodeError, SecateurError) as error:
        raise ConfigError(f"'{path}': {error}") from error
    return grid
