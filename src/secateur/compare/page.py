"""`compare.html`: one file with a table to sort and plots of quality against costs. It asks nothing of the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from secateur.compare.summary import COSTS, Line
from secateur.errors import ConfigError

AXES = {"macs": "MACs of one sample", "size_bytes": "bytes as saved", "latency_ms": "latency of a batch, ms"}
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "star")
COLUMNS = ("pruning", "quantization", "budget", "test", "test_std", "gap", "p_holm", *COSTS, "params", "seconds")

STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1200px; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1em 0 }
th, td { padding: .2em .6em; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left }
th { cursor: pointer; position: sticky; top: 0; background: #fff }
tr.best td { font-weight: 600 } tr.dense td { background: #f2f2f2 }
"""

# A click on a column's head sorts its table by that column, a second one the other way round.
SCRIPT = """
document.querySelectorAll("th").forEach(function (head) {
  head.addEventListener("click", function () {
    const body = head.closest("table").tBodies[0], at = head.cellIndex;
    const down = head.dataset.order !== "down";
    head.closest("tr").querySelectorAll("th").forEach(function (other) { delete other.dataset.order; });
    head.dataset.order = down ? "down" : "up";
    const key = function (row) { return row.cells[at].dataset.value; };
    const compare = function (a, b) {
      const x = Number(key(a)), y = Number(key(b));
      return (isNaN(x) || isNaN(y)) ? key(a).localeCompare(key(b)) : x - y;
    };
    Array.from(body.rows).sort(function (a, b) { return down ? compare(b, a) : compare(a, b); })
      .forEach(function (row) { body.appendChild(row); });
  });
});
"""


@dataclass(frozen=True)
class ParetoPoints:
    """One model's lines as points of one plot, in the order of the lines, and the front from cheap to dear."""

    cost: str
    names: tuple[str, ...]
    x: tuple[float, ...]
    x_std: tuple[float, ...]
    y: tuple[float, ...]
    y_std: tuple[float, ...]
    front: tuple[int, ...]  # indices


def load_plotly() -> Any:
    """The plotting library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import plotly.graph_objects
        import plotly.io
        import plotly.subplots
    except ModuleNotFoundError as error:
        raise ConfigError("compare draws with plotly, which is missing: pip install 'secateur[report]'.") from error
    return plotly


def pareto_points(lines: Sequence[Line], cost: str) -> ParetoPoints:
    """Points (cost, test) of the lines of one model that were carried out."""
    done = [line for line in lines if line.n]
    x = tuple(getattr(line, cost) for line in done)
    on_front = [i for i, line in enumerate(done) if cost in line.pareto]
    return ParetoPoints(
        cost=cost,
        names=tuple(name_of(line) for line in done),
        x=x,
        x_std=tuple(getattr(line, f"{cost}_std") for line in done),
        y=tuple(line.test or 0.0 for line in done),
        y_std=tuple(line.test_std or 0.0 for line in done),
        front=tuple(sorted(on_front, key=x.__getitem__)),
    )


def name_of(line: Line) -> str:
    """What was done, in a few words."""
    if line.is_dense:
        return "dense"
    budget = "" if line.budget == 1 else f" {line.budget:g}"
    return " + ".join(part for part in (f"{line.pruning}{budget}", line.quantization) if not part.startswith("none"))


def draw_pareto(lines: Sequence[Line]) -> Any:
    """A figure of one model: quality against each cost, with standard deviations as bars and the front as a line."""
    plotly = load_plotly()
    go = plotly.graph_objects
    figure = plotly.subplots.make_subplots(1, len(COSTS), shared_yaxes=True, horizontal_spacing=0.04)
    done = [line for line in lines if line.n]
    kinds = list(dict.fromkeys(line.quantization for line in done))
    for column, cost in enumerate(COSTS, 1):
        points = pareto_points(done, cost)
        for number, kind in enumerate(kinds):
            at = [i for i, line in enumerate(done) if line.quantization == kind]
            trace = go.Scatter(
                x=[points.x[i] for i in at],
                y=[points.y[i] for i in at],
                error_x={"array": [points.x_std[i] for i in at], "thickness": 0.8, "width": 2},
                error_y={"array": [points.y_std[i] for i in at], "thickness": 0.8, "width": 2},
                text=[escape(points.names[i]) for i in at],
                mode="markers",
                marker={"symbol": SYMBOLS[number % len(SYMBOLS)], "size": 9},
                marker_color=COLOURS[number % len(COLOURS)],
                name="no quantization" if kind == "none" else kind,
                legendgroup=kind,
                showlegend=column == 1,
            )
            figure.add_trace(trace, 1, column)
        front = go.Scatter(
            x=[points.x[i] for i in points.front],
            y=[points.y[i] for i in points.front],
            mode="lines",
            line={"color": "#999", "dash": "dot", "shape": "hv"},
            hoverinfo="skip",
            name="Pareto front",
            showlegend=column == 1,
        )
        figure.add_trace(front, 1, column)
        figure.update_xaxes(title_text=AXES[cost], type="log", row=1, col=column)
    figure.update_yaxes(title_text=f"test {done[0].measure}", row=1, col=1)
    figure.update_layout(template="plotly_white", height=460, margin={"t": 20}, legend={"orientation": "h", "y": -0.2})
    return figure


COLOURS = ("#4c72b0", "#dd8452", "#55a868", "#c44e52", "#8172b3", "#937860")


def draw_page(lines: Sequence[Line], effort: str) -> str:
    """Return the page: for each model its plots, its table, and what could not be carried out."""
    plotly = load_plotly()
    parts = []
    for i, model in enumerate(dict.fromkeys(line.model for line in lines)):
        mine = [line for line in lines if line.model == model]
        drawn = plotly.io.to_html(
            draw_pareto(mine),
            full_html=False,
            include_plotlyjs=i == 0,
            include_mathjax=False,
            config={"displaylogo": False, "responsive": True},
            div_id=f"plot-{i}",
        )
        reasons = [f"<li>{escape(name_of(line))}: {escape(line.reason)}</li>" for line in mine if line.reason]
        left = f"<details><summary>not carried out: {len(reasons)}</summary><ul>{''.join(reasons)}</ul></details>"
        parts.append(f"<h2>{escape(model)}</h2>{drawn}{_table(mine)}{left if reasons else ''}")
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>secateur compare</title>'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body>'
        f"<h1>secateur compare</h1><p>{escape(effort)}</p>"
        "<p>Means over folds and seeds, bars are standard deviations. Bold: best of its budget, chosen on validation"
        " parts. p: test against dense, corrected for the number of comparisons. Click a column to sort.</p>"
        f"{''.join(parts)}<script>{SCRIPT}</script></body></html>\n"
    )


def _table(lines: Sequence[Line]) -> str:
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in (*COLUMNS, "pareto"))
    rows = "".join(_row(line) for line in lines if line.n)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(line: Line) -> str:
    values = [getattr(line, name) for name in COLUMNS]
    cells = [f'<td data-value="{escape("" if v is None else str(v))}">{escape(_shown(v))}</td>' for v in values]
    kind = "dense" if line.is_dense else "best" if line.is_best else ""
    front = ", ".join(line.pareto)
    return f'<tr class="{kind}">{"".join(cells)}<td data-value="{len(line.pareto)}">{front}</td></tr>'


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
