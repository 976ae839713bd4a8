"""`secateur compare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.options import JsonOption
from secateur.cli.output import as_json, print_json, print_line, print_table
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.compare import Grid, Row
    from secateur.compare.summary import Line

COSTS = ("MACs", "bytes", "latency ms")
HEADER = ("model", "pruning", "quantization", "budget", "test", "gap", "p (Holm)", *COSTS, "best", "Pareto")
SHORT_HEADER = ("model", "best of each budget, and baselines", "test", "from dense", "p (Holm)", *COSTS)
MARKS = "best: of its model and budget, chosen on validation parts. Pareto: M by MACs, B by bytes, L by latency."
LETTERS = {"macs": "M", "size_bytes": "B", "latency_ms": "L"}


def compare(
    grid: Annotated[Path | None, typer.Argument(help="A TOML file with the fields of secateur.compare.Grid.")] = None,
    preset: Annotated[str | None, typer.Option(help="A grid that comes with Secateur: mission.")] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Such as digits_cnn, text_cnn or klda; settings after '?': ?key=value.")
    ] = None,
    pruning: Annotated[
        list[str] | None, typer.Option(help="Such as l2, taylor, kl, low_rank; may be repeated.")
    ] = None,
    quantization: Annotated[list[str] | None, typer.Option(help="Such as binary or int8_per_channel.")] = None,
    budget: Annotated[list[float] | None, typer.Option(help="Fraction kept, such as 0.5; may be repeated.")] = None,
    cost: Annotated[str | None, typer.Option(help="What budgets of widths count: macs or params.")] = None,
    folds: Annotated[int | None, typer.Option(help="Parts, each of which is the test part once.", min=1)] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of cut, weights and draws; may be repeated.", min=0)] = None,
    jobs: Annotated[int, typer.Option(help="Processes, each on one thread.", min=1)] = 1,
    output: Annotated[Path, typer.Option(help="Folder for rows, page and what is finished.")] = Path(
        "secateur-compare"
    ),
    json: JsonOption = False,
) -> None:
    """Compare prunings and quantizations of models, cross-validated. A run that was killed goes on where it was."""
    from secateur.compare import compare as run
    from secateur.compare.plots import load_plotly
    from secateur.compare.summary import summarise

    load_plotly()  # before the work, so that it isn't missing afterwards
    names = ("models", "prunings", "quantizations", "budgets", "cost", "folds", "seeds")
    asked = zip(names, (model, pruning, quantization, budget, cost, folds, seed), strict=True)
    done = run(_grid(grid, preset, {name: value for name, value in asked if value}), output / "cells", n_jobs=jobs)
    lines = summarise(done.rows)
    effort = {**asdict(done.effort), "overhead": done.effort.overhead}
    summary = {"lines": [asdict(line) for line in lines], "effort": effort}
    written = _write(output, done.rows, lines, summary, str(done.effort))
    if json:
        print_json(summary)
        return
    _print(lines)
    print_line(str(done.effort))
    print_line(f"saved in {output}: {', '.join(written)}")


def _grid(path: Path | None, preset: str | None, given: dict[str, Any]) -> Grid:
    """The grid of a file or a preset, or the default one, with what the flags say in its place."""
    from secateur.compare import Grid
    from secateur.compare.grids import PRESETS, read_grid

    if (path is not None) + (preset is not None) > 1 or not (path or preset or given):
        raise ConfigError("What should be compared? Give a TOML file, or --preset mission, or --model and the rest.")
    start = read_grid(path) if path is not None else Grid() if preset is None else PRESETS[preset]
    fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return replace(start, **fields)


def _write(folder: Path, rows: Sequence[Row], lines: Sequence[Line], summary: dict[str, Any], effort: str) -> list[str]:
    """Write the files of a comparison; returns their names."""
    from secateur.compare.page import draw_page
    from secateur.compare.rows import rows_to_csv, rows_to_json

    files = {
        "rows.csv": rows_to_csv(rows),
        "rows.json": rows_to_json(rows),
        "summary.json": as_json(summary),
        "compare.html": draw_page(lines, effort),
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(files)


def _print(lines: Sequence[Line]) -> None:
    """Print a table of everything, then what is best, then what is missing and why."""
    from secateur.compare.summary import highlights, left_out

    print_table(HEADER, [_cells(line) for line in lines if line.n], n_text=3)
    print_line(MARKS)
    models = dict.fromkeys(line.model for line in lines)
    best = [line for model in models for line in highlights([line for line in lines if line.model == model])]
    print_table(SHORT_HEADER, [_short_cells(line) for line in best], n_text=2)
    for model in models:
        for reason, missing in left_out([line for line in lines if line.model == model]).items():
            print_line(f"not carried out: {model}: {', '.join(line.technique for line in missing)}: {reason}")


def _cells(line: Line) -> tuple[str, ...]:
    marks = ("*" if line.is_best else "", "".join(LETTERS[cost] for cost in line.pareto))
    head = (line.model, line.pruning, line.quantization, f"{line.budget:g}")
    return (*head, _test(line), f"{line.gap:+.3f}", _p(line), *_costs(line), *marks)


def _short_cells(line: Line) -> tuple[str, ...]:
    name = f"* {line.technique}" if line.is_best else line.technique
    return (line.model, name, _test(line), f"{line.difference:+.3f}", _p(line), *_costs(line))


def _test(line: Line) -> str:
    return f"{line.measure} {line.test:.3f} ± {line.test_std:.3f}"


def _p(line: Line) -> str:
    return "–" if line.p_holm is None else f"{line.p_holm:.3f}"


def _costs(line: Line) -> tuple[str, ...]:
    return f"{line.macs:,.0f}", f"{line.size_bytes:,.0f}", f"{line.latency_ms:.3f}"
