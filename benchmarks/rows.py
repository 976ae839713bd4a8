"""Rows of benchmark results: what was measured, with versions, seeds and machine, as JSON lines and as a table."""

from __future__ import annotations

import json
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from secateur.tables import text_table

RESULTS = Path(__file__).parent / "results"


def machine(*packages: str) -> dict[str, Any]:
    """Versions and machine, to stand in every row. A package that is not installed is None."""
    found: dict[str, Any] = {}
    for name in ("secateur", "torch", *packages):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return {
        "date": time.strftime("%Y-%m-%d"),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "versions": found,
    }


def write_rows(name: str, rows: list[dict[str, Any]], columns: tuple[str, ...]) -> Path:
    """Write `results/NAME.jsonl` and a readable `results/NAME.txt`, every machine below its table; print it."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = text_table(columns, [[_cell(row.get(c)) for c in columns] for row in rows])
    text = "\n".join([table, "", *dict.fromkeys(_where(row.get("machine", {})) for row in rows)])
    path.with_suffix(".txt").write_text(f"{text}\n")
    print(text)
    return path


def read_rows(name: str) -> list[dict[str, Any]]:
    """The rows of `results/NAME.jsonl`; none where there is no such file."""
    path = RESULTS / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _where(machine: dict[str, Any]) -> str:
    return f"{machine.get('cpu')}, {machine.get('cores')} cores, {machine.get('date')}, {machine.get('versions')}"


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.2e}" if value and abs(value) < 1e-3 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
