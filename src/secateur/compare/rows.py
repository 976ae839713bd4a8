"""What a cell gives: one row, as plain data; files of rows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from secateur.compare.cells import Cell
from secateur.files.decode import decode


@dataclass(frozen=True, kw_only=True)
class Row:
    """One finished cell. Of a cell that can't be carried out, `reason` says why, and what was not measured is None."""

    model: str
    pruning: str
    quantization: str
    budget: float
    fold: int
    seed: int
    measure: str  # what `train`, `val`, `test` and `gap` are of
    reason: str = ""
    train: float | None = None  # on the samples that were trained on
    val: float | None = None  # on samples of the training part that were not: to choose by
    val_loss: float | None = None  # cross-entropy on the same, which tells apart what is equally often right
    test: float | None = None  # on the fold's test part
    gap: float | None = None  # train - test, the generalization gap
    test_over_train: float | None = None  # samples of the test part over those of the training part
    accuracy: float | None = None  # this and what follows: on the test part
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    adjusted_rand: float | None = None
    nmi: float | None = None
    purity: float | None = None
    silhouette: float | None = None  # among the samples as they are; None where there is a single cluster
    log_likelihood: float | None = None  # per sample, in nats, under each network's own density of its latent space
    params: int | None = None
    macs: int | None = None  # of one sample
    size_bytes: int | None = None  # as saved
    latency_ms: float | None = None  # of one batch, in the process that ran the cell
    speedup: float | None = None  # dense time / this time, timed in turn
    seconds: float | None = None  # of the cell, without the training that it shares
    seconds_outside: float | None = None  # of these, outside scoring, training and evaluation
    notes: str = ""  # what steps said or left alone

    @property
    def cell(self) -> Cell:
        """The cell that it is of."""
        return Cell(**{f.name: getattr(self, f.name) for f in fields(Cell)})

    @property
    def is_done(self) -> bool:
        """True where there are numbers."""
        return not self.reason

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        """Undo `asdict`, strictly; what an earlier version did not measure is None."""
        row: Row = decode(cls, data, "row", is_partial=True)
        return row


def rows_to_csv(rows: Sequence[Row]) -> str:
    """One line per row; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    return text.getvalue()


def rows_from_csv(text: str) -> list[Row]:
    """Undo `rows_to_csv`."""
    kinds = {f.name: str(f.type).split(" | ")[0] for f in fields(Row)}
    read = {"int": int, "float": float, "str": str}

    def value(name: str, cell: str) -> Any:
        return read[kinds[name]](cell) if cell or kinds[name] == "str" else None

    return [Row(**{n: value(n, cell) for n, cell in line.items()}) for line in csv.DictReader(io.StringIO(text))]


def rows_to_json(rows: Sequence[Row]) -> str:
    """A list of objects."""
    return json.dumps([asdict(row) for row in rows], indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def rows_from_json(text: str) -> list[Row]:
    """Undo `rows_to_json`."""
    return [Row.from_dict(data) for data in json.loads(text)]
