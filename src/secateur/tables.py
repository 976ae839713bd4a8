"""Plain text tables, for `print` of values and for logs."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the header underlined; columns of numbers are right-aligned.

    >>> print(text_table(("name", "n"), [("a", "10"), ("bcd", "7")]))
    name   n
    ────  ──
    a     10
    bcd    7
    """
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [bool(rows) and all(_is_number(cell) for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["─" * w for w in widths]), *map(line, rows)])


def _is_number(cell: str) -> bool:
    text = cell.strip().rstrip("%x×").replace(",", "").replace(".", "", 1).removeprefix("-").strip()
    return text.isdigit() or cell in {"", "–"}
