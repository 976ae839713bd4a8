"""`csv:FILE`: a table with a header, numeric columns and one column of labels; `.gz` is unpacked on the fly."""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

from secateur.data.labels import encode_labels
from secateur.data.sources import SOURCES, RawData, ReadConfig
from secateur.errors import DataError

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
SHOWN = 5  # places that an error lists


@SOURCES.register("csv")
def read_csv(address: str, read: ReadConfig) -> RawData:
    """Read a table: x (N, F) float32 of every column but the label's.

    Raises:
        DataError: no such file, no header, no such label column, ragged rows, cells that are missing or no number.
    """
    header, rows, lines = read_table(address)
    at = label_column(header, read.label, address)
    names = [name for i, name in enumerate(header) if i != at]
    if not names:
        raise DataError(f"{address} has one column only. Give it features beside the label '{header[at]}'.")
    problems = _missing(header, rows, lines)
    if problems:
        raise DataError(
            f"{address} has {len(problems)} missing values: {'; '.join(problems[:SHOWN])}. Fill or drop them."
        )
    cells = [[cell for i, cell in enumerate(row) if i != at] for row in rows]
    try:
        values = np.array(cells, dtype=np.float64).astype(np.float32)
    except ValueError:
        raise DataError(_not_numbers(address, names, cells, lines)) from None
    if not np.isfinite(values).all():
        i, j = map(int, np.argwhere(~np.isfinite(values))[0])
        raise DataError(f"{address}, line {lines[i]}, column '{names[j]}': {cells[i][j]} is not a finite float32.")
    column = np.array([row[at].strip() for row in rows])
    with suppress(ValueError, OverflowError):  # names of classes stay strings
        column = column.astype(np.int64)
    labels, classes = encode_labels({"train": column}, None, address)
    return RawData(train=(torch.from_numpy(values), labels["train"]), classes=classes)


def read_table(address: str) -> tuple[list[str], list[list[str]], list[int]]:
    """Return the header, the rows, and the line that each row ends on. Raises DataError where that is no table."""
    if not Path(address).is_file():
        raise DataError(f"No file '{address}'. Give the path of a .csv or .csv.gz file.")
    try:
        numbered = list(_numbered_rows(address))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as err:
        raise DataError(
            f"{address} cannot be read as CSV: {err}. It must be UTF-8 text, or that packed by gzip."
        ) from err
    if len(numbered) < 2:
        raise DataError(f"{address} has no rows below its header.")
    header = [name.strip() for name in numbered[0][1]]
    if all(_is_number(name) for name in header):
        raise DataError(f"{address} has no header: its first line is {', '.join(header[:SHOWN])}. Add a line of names.")
    ragged = [f"line {line} has {len(row)}" for line, row in numbered[1:] if len(row) != len(header)]
    if ragged:
        raise DataError(f"{address} has {len(header)} columns, but {'; '.join(ragged[:SHOWN])}. Check the quoting.")
    return header, [row for _, row in numbered[1:]], [line for line, _ in numbered[1:]]


def _numbered_rows(address: str) -> Iterator[tuple[int, list[str]]]:
    opened = gzip.open if address.endswith(".gz") else open
    with opened(address, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        for row in reader:
            if row:
                yield reader.line_num, row


def label_column(header: list[str], label: str | None, address: str) -> int:
    """Return the place of the label's column: the one named, or `label`, or the last."""
    if label is None:
        return header.index("label") if "label" in header else len(header) - 1
    if label not in header:
        raise DataError(f"{address} has no column '{label}'. Its columns: {', '.join(header)}.")
    return header.index(label)


def _missing(header: list[str], rows: list[list[str]], lines: list[int]) -> list[str]:
    return [
        f"line {line}, column '{name}'"
        for line, row in zip(lines, rows, strict=True)
        for name, cell in zip(header, row, strict=True)
        if cell.strip().lower() in MISSING
    ]


def _not_numbers(address: str, names: list[str], cells: list[list[str]], lines: list[int]) -> str:
    places = [
        f"line {line}, column '{name}': '{cell[:30]}'"
        for line, row in zip(lines, cells, strict=True)
        for name, cell in zip(names, row, strict=True)
        if not _is_number(cell)
    ]
    return (
        f"{address} has {len(places)} cells that are no numbers: {'; '.join(places[:SHOWN])}."
        " Encode these columns as numbers, or name the label column."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
