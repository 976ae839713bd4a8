"""Results on stdout: tables for people, one JSON document for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

PIPED_WIDTH = 200  # columns of a table that no terminal breaks


def print_json(data: Any) -> None:
    """Print one JSON document."""
    sys.stdout.write(as_json(data))


def as_json(data: Any) -> str:
    """The document, as it is printed and saved."""
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def print_line(text: str) -> None:
    """Print a line of text, as it is."""
    sys.stdout.write(f"{text}\n")


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, n_text: int = 1) -> None:
    """Print a table; columns after the first `n_text` are numbers, set to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < n_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # Text: brackets in names are no markup
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)
