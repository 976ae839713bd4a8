"""`compare.html`: one file with plots of quality against costs and tables to sort.

It asks nothing of the network, and forbids itself to: its content security policy allows what stands in it, no more.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files

from secateur.compare.plots import colours_of, draw_pareto, load_plotly
from secateur.compare.summary import COSTS, QUALITIES, Line, highlights, left_out

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
SYMBOLS = "★ dense", "● pruned", "✕ random", "▲ from scratch", "— Pareto front", "┄ dense quality"
ABOUT = """
Means over folds and seeds, ± standard deviation. The best of a budget is chosen on validation parts, not on the test
parts that are shown. <i>p</i> is of the corrected resampled t-test against dense, adjusted for the number of
comparisons by Holm's method.
"""
Cell = tuple[str, float | str | None]  # what is shown, as HTML, and what it is sorted by


def draw_page(lines: Sequence[Line], effort: str) -> str:
    """Return the page: for each model what is best, its plots, its table, and what could not be carried out."""
    plotly = load_plotly()
    models = list(dict.fromkeys(line.model for line in lines))
    sections = [_section([line for line in lines if line.model == model], i) for i, model in enumerate(models)]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>secateur compare</title>'
        f'<link rel="icon" href="data:,"><style>{_own("page.css")}</style>'
        f"<script>{plotly.offline.get_plotlyjs()}</script></head><body><h1>secateur compare</h1>"
        f"<p>{ABOUT}</p><p>{escape(effort)}.</p>"
        f"{''.join(sections)}<script>{_own('page.js')}</script></body></html>\n"
    )


def _own(name: str) -> str:
    return (files("secateur.compare") / name).read_text(encoding="utf-8")


def _section(lines: Sequence[Line], number: int) -> str:
    """All of one model."""
    done = [line for line in lines if line.n]
    plots = "".join(_plot(lines, cost, f"plot-{number}-{cost}") for cost in COSTS) if done else ""
    folds = (
        f"<p>Compared by test {done[0].measure.replace('_', ' ')} over {done[0].n} folds and seeds.</p>" if done else ""
    )
    return (
        f"<section><h2>{escape(lines[0].model)}</h2>{folds}"
        f"<h3>Best of each budget, beside the baselines</h3>{_short_table(highlights(done))}"
        f"<h3>Quality against cost</h3>{_legend(done)}<div class='plots'>{plots}</div>"
        f"<h3>All techniques</h3>{_table(done)}{_left_out(lines)}</section>"
    )


def _plot(lines: Sequence[Line], cost: str, div_id: str) -> str:
    drawn: str = load_plotly().io.to_html(
        draw_pareto(lines, cost),
        full_html=False,
        include_plotlyjs=False,
        include_mathjax=False,
        config={"displayModeBar": False, "responsive": True},
        div_id=div_id,
    )
    return drawn


def _legend(lines: Sequence[Line]) -> str:
    """A button for each quantization, which shows and hides it, and what the symbols mean."""
    buttons = (
        f'<button type="button" aria-pressed="true" value="{escape(kind)}"><i style="background:{colour}"></i>'
        f"{'not quantized' if kind == 'none' else _words(kind)}</button>"
        for kind, colour in colours_of(lines).items()
    )
    symbols = "".join(f"<span>{symbol}</span>" for symbol in SYMBOLS)
    return f"<div class='legend'>{''.join(buttons)}{symbols}</div>"


def _short_table(lines: Sequence[Line]) -> str:
    """Of the highlights: quality, its difference from dense, and costs as parts of the dense ones."""
    if not lines:
        return ""
    dense = lines[0]
    names = ("technique", f"test {dense.measure}", "from dense", "p", "MACs", "bytes", "latency")
    rows = []
    for line in lines:
        parts = [getattr(line, cost) / getattr(dense, cost) for cost in ("macs", "size_bytes")]
        parts.append(1 / (line.speedup or 1.0))  # steadier than a ratio of times: both were timed in turn
        costs = [_number(part, ".0%") for part in parts]
        difference = ("", None) if line.is_dense else _number(line.difference, "+.3f")
        cells = [_name(line), _with_spread(line.test, line.test_std), difference, _number(line.p_holm, ".3f"), *costs]
        rows.append(_row(line, cells, n_text=1))
    return _html_table(names, rows, n_text=1, kind="table short", is_sortable=False)


def _table(lines: Sequence[Line]) -> str:
    """Every line that was carried out."""
    if not lines:
        return ""
    measure = lines[0].measure
    others = [name for name in QUALITIES if name != measure and any(name in line.qualities for line in lines)]
    names = (
        *("pruning", "quantization", "budget", f"test {measure}", "train", "gap", "p"),
        *("MACs", "bytes", "latency, ms", "marks", "params", *map(_words, others), "seconds"),
    )
    rows = []
    for line in lines:
        cells: list[Cell] = [(_words(name), name) for name in (line.pruning, line.quantization)]
        cells += [_number(line.budget, "g"), _with_spread(line.test, line.test_std), _number(line.train, ".3f")]
        cells += [_with_spread(line.gap, line.gap_std, "+.3f"), _number(line.p_holm, ".3f")]
        cells += [_number(line.macs, ",.0f"), _number(line.size_bytes, ",.0f")]
        cells += [_with_spread(line.latency_ms, line.latency_ms_std), (_marks(line), len(line.pareto) + line.is_best)]
        cells += [
            _number(line.params, ",.0f"),
            *(_with_spread(*line.qualities.get(name, (None, None))) for name in others),
        ]
        cells += [_number(line.seconds, ".2f")]
        rows.append(_row(line, cells, n_text=2))
    return _html_table(names, rows, n_text=2, kind="table", is_sortable=True)


def _html_table(names: Sequence[str], rows: Sequence[str], *, n_text: int, kind: str, is_sortable: bool) -> str:
    heads = []
    for i, name in enumerate(names):
        what = f'<button type="button">{escape(name)}</button>' if is_sortable else escape(name)
        heads.append(f'<th scope="col"{" class=text" if i < n_text else ""}>{what}</th>')
    head = f"<thead><tr>{''.join(heads)}</tr></thead>"
    return f'<div class="{kind}" tabindex="0"><table>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _row(line: Line, cells: Sequence[Cell], *, n_text: int) -> str:
    kind = "dense" if line.is_dense else "best" if line.is_best else ""
    found = []
    for i, (shown, value) in enumerate(cells):
        key = "" if value is None else escape(str(value))
        found.append(f'<td{" class=text" if i < n_text else ""} data-value="{key}">{shown}</td>')
    return f'<tr class="{kind}" data-kind="{escape(line.quantization)}">{"".join(found)}</tr>'


def _name(line: Line) -> Cell:
    mark = '<span class="mark">best</span>' if line.is_best else ""
    return f"{_words(line.technique)}{mark}", line.technique


def _marks(line: Line) -> str:
    names = {"macs": "MACs", "size_bytes": "bytes", "latency_ms": "latency"}
    found = (["best"] if line.is_best else []) + [names[cost] for cost in line.pareto]
    return "".join(f'<span class="mark">{name}</span>' for name in found)


def _number(value: float | None, form: str) -> Cell:
    return ("–" if value is None else f"{value:{form}}"), value


def _with_spread(value: float | None, spread: float | None, form: str = ".3f") -> Cell:
    return ("–" if value is None else f"{value:{form}} <small>± {spread:.3f}</small>"), value


def _words(name: str) -> str:
    return escape(name.replace("_", " "))


def _left_out(lines: Sequence[Line]) -> str:
    """What was not carried out, by its reason."""
    reasons = left_out(lines)
    if not reasons:
        return ""
    names = {reason: _words(", ".join(line.technique for line in found)) for reason, found in reasons.items()}
    items = "".join(f"<li>{escape(reason)}<br><small>{what}</small></li>" for reason, what in names.items())
    n_lines = sum(map(len, reasons.values()))
    return f"<details><summary>{n_lines} combinations could not be carried out</summary><ul>{items}</ul></details>"
