"""`text:FILE`: a table with a column of texts and one of labels, as token numbers."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
from torch import Tensor

from secateur.data.csv_table import SHOWN, label_column, read_table
from secateur.data.labels import encode_labels
from secateur.data.sources import SOURCES, RawData, ReadConfig
from secateur.data.words import Words
from secateur.errors import DataError


@SOURCES.register("text")
def read_text(address: str, read: ReadConfig) -> RawData:
    """Read texts as numbers (N, read.max_length) int64 of all words of the file, of which `load_data` keeps some.

    Raises:
        DataError: no such file, no header, no such column, rows without text or label.
    """
    texts, y, classes = read_texts(address, read)
    words = Words.of(texts)
    return RawData(train=(words.encode(texts, length=read.max_length), y), classes=classes, words=words)


def read_texts(address: str, read: ReadConfig | None = None) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """Return the texts of a table as they are, labels (N,) int64, and the classes' names.

    Args:
        address: path of a .csv or .csv.gz file with a header.
        read: which columns: `text` (None: the one called text, or the first that isn't the label) and `label`.
    """
    read = read or ReadConfig()
    header, rows, lines = read_table(address)
    at = label_column(header, read.label, address)
    text_at = _text_column(header, read.text, at, address)
    empty = [
        f"line {line}" for line, row in zip(lines, rows, strict=True) if not (row[text_at].strip() and row[at].strip())
    ]
    if empty:
        raise DataError(
            f"{address} has {len(empty)} rows without '{header[text_at]}' or '{header[at]}':"
            f" {', '.join(empty[:SHOWN])}. Fill or drop them."
        )
    column = np.array([row[at].strip() for row in rows])
    with suppress(ValueError, OverflowError):  # names of classes stay strings
        column = column.astype(np.int64)
    labels, classes = encode_labels({"train": column}, None, address)
    return [row[text_at] for row in rows], labels["train"], classes


def _text_column(header: list[str], text: str | None, label_at: int, address: str) -> int:
    name = "text" if text is None and "text" in header else text
    if name is None:
        name = next((column for i, column in enumerate(header) if i != label_at), None)
    if name not in header or header.index(name) == label_at:
        raise DataError(f"{address} has no column of texts '{name}'. Its columns: {', '.join(header)}.")
    return header.index(name)
