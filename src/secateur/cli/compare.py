"""`secateur compare`."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from secateur.cli.options import JsonOption
from secateur.cli.output import as_json, print_json, print_line, print_table
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.compare.summary import Line

HEADER = (
    *("model", "pruning", "quantization", "budget", "test", "gap", "p (Holm)", "MACs", "bytes", "latency ms"),
    *("best", "Pareto"),
)
SHORT = {"macs": "M", "size_bytes": "B", "latency_ms": "L"}


def compare(
    grid: Annotated[Path | None, typer.Argument(help="A TOML file with the fields of secateur.compare.Grid.")] = None,
    preset: Annotated[str | None, typer.Option(help="A grid that comes with Secateur: mission.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="digits_cnn, digits_mlp, text_cnn, klda; ?key=value.")] = None,
    pruning: Annotated[
        list[str] | None, typer.Option(help="Such as l2, taylor, kl, low_rank; may be repeated.")
    ] = None,
    quantization: Annotated[list[str] | None, typer.Option(help="Such as binary or int8_per_channel.")] = None,
    budget: Annotated[list[float] | None, typer.Option(help="Fraction kept, such as 0.5; may be repeated.")] = None,
    folds: Annotated[int | None, typer.Option(help="Parts, each of which is the test part once.", min=2)] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Of cut, weights and draws; may be repeated.", min=0)] = None,
    jobs: Annotated[int, typer.Option(help="Processes, each on one thread.", min=1)] = 1,
    output: Annotated[Path, typer.Option(help="Folder for rows, page and what is finished.")] = Path(
        "secateur-compare"
    ),
    json: JsonOption = False,
) -> None:
    """Compare prunings and quantizations of models, cross-validated. A run that was killed goes on where it was."""
    from secateur.compare import Grid
    from secateur.compare import compare as run
    from secateur.compare.grids import PRESETS, read_grid
    from secateur.compare.page import draw_page, load_plotly
    from secateur.compare.rows import rows_to_csv, rows_to_json
    from secateur.compare.summary import summarise

    load_plotly()  # before the work, so that it isn't missing afterwards
    asked: dict[str, Any] = {
        "models": model,
        "prunings": pruning,
        "quantizations": quantization,
        "budgets": budget,
        "folds": folds,
        "seeds": seed,
    }
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in asked.items() if value
    }
    if (grid is not None) + (preset is not None) > 1 or not (grid or preset or given):
        raise ConfigError("What should be compared? Give a TOML file, or --preset mission, or --model and the rest.")
    start = read_grid(grid) if grid is not None else Grid() if preset is None else PRESETS[preset]
    done = run(replace(start, **given), output / "cells", n_jobs=jobs)
    lines = summarise(done.rows)
    effort = {**asdict(done.effort), "overhead": done.effort.overhead}
    summary = {"lines": [asdict(line) for line in lines], "effort": effort}
    files = {
        "rows.csv": rows_to_csv(done.rows),
        "rows.json": rows_to_json(done.rows),
        "summary.json": as_json(summary),
        "compare.html": draw_page(lines, str(done.effort)),
    }
    for name, text in files.items():
        (output / name).write_text(text, encoding="utf-8")
    if json:
        print_json(summary)
        return
    print_table(HEADER, [_cells(line) for line in lines if line.n], n_text=3)
    print_line(
        "best: of its model and budget, chosen on validation parts. Pareto: M by MACs, B by bytes, L by latency."
    )
    for line in lines:
        if line.reason:
            what = f"{line.pruning} at {line.budget:g}, {line.quantization}"
            print_line(f"not carried out: {line.model}: {what}: {line.reason}")
    print_line(str(done.effort))
    print_line(f"saved in {output}: {', '.join(files)}")


def _cells(line: Line) -> tuple[str, ...]:
    p = "–" if line.p_holm is None else f"{line.p_holm:.3f}"
    quality = (f"{line.test:.3f} ± {line.test_std:.3f}", f"{line.gap:+.3f}", p)
    costs = (f"{line.macs:,.0f}", f"{line.size_bytes:,.0f}", f"{line.latency_ms:.3f}")
    marks = ("*" if line.is_best else "", "".join(SHORT[cost] for cost in line.pareto))
    head = (line.model, line.pruning, line.quantization, f"{line.budget:g}")
    return (*head, f"{line.measure} {quality[0]}", *quality[1:], *costs, *marks)
