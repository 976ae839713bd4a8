"""What is done already: rows of cells and weights of starts, each in a file named by what it depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._version import __version__
from secateur.compare.cells import Cell, Grid, Start
from secateur.compare.rows import Row
from secateur.compare.subjects import Task
from secateur.errors import FileError
from secateur.files.atomic import describe, new_file
from secateur.files.decode import DecodeError
from secateur.files.state import load_weights, state_of, write_tensors

SETTINGS_OF_STARTS = ("folds", "val_fraction", "cost")
SETTINGS_OF_CELLS = (*SETTINGS_OF_STARTS, "n_calibration", "measure")
"""Fields of a grid that a start and a cell depend on; what else is in the grid may change, and files stay good."""


@dataclass(frozen=True)
class Store:
    """Files appear whole or not at all, so that a run which was killed goes on with what it has finished.

    Args:
        folder: made where it is missing. Several processes may write to it.
        grid: whose cells these are.
    """

    folder: Path
    grid: Grid
    _subjects: dict[str, tuple[str, str]] = field(init=False, compare=False)  # settings, those by default too; samples

    def __post_init__(self) -> None:
        found = {text: (repr(subject), subject.fingerprint()) for text, subject in self.grid.subjects().items()}
        object.__setattr__(self, "_subjects", found)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(describe(error, self.folder)) from error

    def has_start(self, start: Start) -> bool:
        """True where it is trained."""
        return self._path(start, ".json").is_file()

    def keep_start(self, start: Start, model: nn.Module, scale: float) -> None:
        """Write the weights of a trained network, then the scale of its widths."""
        state = state_of(model)
        with new_file(self._path(start, ".safetensors")) as partial:
            write_tensors(state, partial)
        _write_json(self._path(start, ".json"), {"scale": scale})

    def start(self, start: Start, task: Task) -> nn.Module:
        """Read a trained network."""
        scale = json.loads(self._path(start, ".json").read_text(encoding="utf-8"))["scale"]
        return load_weights(task.build(scale), self._path(start, ".safetensors")).eval()

    def row(self, cell: Cell) -> Row | None:
        """The row of a finished cell; None where there is none yet."""
        path = self._path(cell, ".json")
        try:
            return Row.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, DecodeError) as error:
            raise FileError(f"'{path}' is no row of a comparison: {error}. Delete it to run its cell again.") from error

    def keep_row(self, row: Row) -> None:
        """Write the row of a finished cell."""
        _write_json(self._path(row.cell, ".json"), asdict(row))

    def _path(self, what: Cell | Start, suffix: str) -> Path:
        names = SETTINGS_OF_CELLS if isinstance(what, Cell) else SETTINGS_OF_STARTS
        settings = {name: value for name, value in asdict(self.grid).items() if name in names}
        versions = {"secateur": __version__, "torch": torch.__version__}
        parts = [type(what).__name__, asdict(what), self._subjects[what.model], settings, versions]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{type(what).__name__.lower()}-{digest[:24]}{suffix}"


def _write_json(path: Path, data: Any) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)
    with new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
