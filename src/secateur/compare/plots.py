"""Plots of quality against a cost: which points there are, and how they are drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from secateur.compare.summary import Line
from secateur.compare.techniques import RANDOM, SCRATCH
from secateur.errors import ConfigError

AXES = {"macs": "MACs of one sample", "size_bytes": "bytes as saved", "latency_ms": "latency of a batch, ms"}
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of quantizations, in their order: the palette of Okabe and Ito, which colour-blind readers can tell apart."""
SYMBOLS = {RANDOM: "x-thin-open", SCRATCH: "triangle-up", "dense": "star", "pruned": "circle"}
SIZES = {RANDOM: 8, SCRATCH: 9, "dense": 15, "pruned": 8}
INK, PALE = "#3d4349", "#e9ebee"
LADDERS = ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 5), (1,))
"""Ticks of a logarithmic axis, times powers of ten; the first has one in any range that a plot may have."""
FEW_TICKS = 6


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
        import plotly.offline
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
        names=tuple(line.technique for line in done),
        x=x,
        x_std=tuple(getattr(line, f"{cost}_std") for line in done),
        y=tuple(line.test or 0.0 for line in done),
        y_std=tuple(line.test_std or 0.0 for line in done),
        front=tuple(sorted(on_front, key=x.__getitem__)),
    )


def colours_of(lines: Sequence[Line]) -> dict[str, str]:
    """A colour for each quantization of these lines."""
    kinds = dict.fromkeys(line.quantization for line in lines)
    return {kind: COLOURS[i % len(COLOURS)] for i, kind in enumerate(kinds)}


def role_of(line: Line) -> str:
    """What its symbol tells: "dense", the name of another baseline, or "pruned" for everything that is compared."""
    if line.is_dense:
        return "dense"
    return line.pruning if line.pruning in (RANDOM, SCRATCH) else "pruned"


def draw_pareto(lines: Sequence[Line], cost: str) -> Any:
    """A figure of one model: quality against a cost, one trace per quantization (its name is the trace's `meta`).

    Bars are standard deviations, points off the front are pale, and a dashed line goes through the dense network.
    """
    go = load_plotly().graph_objects
    done = [line for line in lines if line.n]
    points = pareto_points(done, cost)
    figure = go.Figure()
    _draw_dense(figure, done, points)
    for kind, colour in colours_of(done).items():
        at = [i for i, line in enumerate(done) if line.quantization == kind]
        figure.add_trace(_trace(go, done, points, at, colour).update(meta=kind))
    front = {"x": [points.x[i] for i in points.front], "y": [points.y[i] for i in points.front]}
    figure.add_trace(
        go.Scatter(**front, mode="lines", line={"color": INK, "width": 1, "shape": "hv"}, hoverinfo="skip")
    )
    low, high = min(points.x) * 0.8, max(points.x) * 1.25
    ticks = log_ticks(low, high)
    figure.update_xaxes(
        title={"text": AXES[cost], "standoff": 12},
        type="log",
        range=[math.log10(low), math.log10(high)],
        tickvals=ticks,
        ticktext=[short(tick) for tick in ticks],
    )
    figure.update_yaxes(title={"text": f"test {done[0].measure}", "standoff": 8}, range=quality_range(points))
    figure.update_xaxes(gridcolor=PALE, linecolor=INK, ticks="outside", tickcolor=INK, ticklen=4)
    figure.update_yaxes(gridcolor=PALE, zeroline=False)
    figure.update_layout(
        template="none",
        height=360,
        margin={"t": 12, "r": 12, "b": 52, "l": 56},
        showlegend=False,
        font={"family": "system-ui, sans-serif", "size": 12, "color": INK},
        hoverlabel={"bgcolor": "#fff", "bordercolor": INK, "font": {"color": INK}},
    )
    return figure


def _draw_dense(figure: Any, lines: Sequence[Line], points: ParetoPoints) -> None:
    for i, line in enumerate(lines):
        if line.is_dense:
            figure.add_hline(points.y[i], line={"color": INK, "width": 1, "dash": "dot"}, opacity=0.5, layer="below")


def _trace(go: Any, lines: Sequence[Line], points: ParetoPoints, at: Sequence[int], colour: str) -> Any:
    roles = [role_of(lines[i]) for i in at]
    front = set(points.front)
    bars = {"thickness": 1, "width": 0, "color": _faint(colour)}
    unit = " ms" if points.cost == "latency_ms" else ""
    spread = [f"{short(points.x[i])} ± {short(points.x_std[i])}{unit}" for i in at]
    return go.Scatter(
        x=[points.x[i] for i in at],
        y=[points.y[i] for i in at],
        error_x={"array": [points.x_std[i] for i in at], **bars},
        error_y={"array": [points.y_std[i] for i in at], **bars},
        mode="markers",
        marker={
            "color": colour,
            "symbol": [SYMBOLS[role] for role in roles],
            "size": [SIZES[role] for role in roles],
            "opacity": [1.0 if i in front or role == "dense" else 0.4 for i, role in zip(at, roles, strict=True)],
            "line": {
                "width": [1.8 if role == RANDOM else 0.8 for role in roles],
                "color": [colour if role == RANDOM else "#fff" for role in roles],
            },
        },
        text=[escape(points.names[i]) for i in at],
        customdata=[[f"{points.y[i]:.3f} ± {points.y_std[i]:.3f}", text] for i, text in zip(at, spread, strict=True)],
        hovertemplate="<b>%{text}</b><br>%{customdata[0]}<br>%{customdata[1]}<extra></extra>",
    )


def quality_range(points: ParetoPoints) -> list[float]:
    """Lowest and highest quality with their bars, within [0, 1] where the points are, and a little air."""
    low = min(y - std for y, std in zip(points.y, points.y_std, strict=True))
    high = max(y + std for y, std in zip(points.y, points.y_std, strict=True))
    low, high = max(low, min(0.0, *points.y)), min(high, max(1.0, *points.y))
    air = 0.04 * ((high - low) or 1.0)
    return [low - air, high + air]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, as many as fit: the finest of `LADDERS` with at most `FEW_TICKS`.

    >>> log_ticks(9_000, 60_000), log_ticks(0.5, 3_000)
    ([10000.0, 20000.0, 50000.0], [1.0, 10.0, 100.0, 1000.0])
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for ladder in LADDERS:
        found = [tick for power in powers for step in ladder if low <= (tick := float(f"{step}e{power}")) <= high]
        if len(found) <= FEW_TICKS:
            break
    return found


def short(value: float) -> str:
    """A number in three digits, with k and M for thousands and millions.

    >>> short(51_488), short(0.46412), short(2e6), short(0)
    ('51.5k', '0.464', '2M', '0')
    """
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.22)"
