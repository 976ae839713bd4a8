"""What rows come to: tests, corrections, fronts, choices; grids from files; the page and the command."""

from __future__ import annotations

import html.parser
import itertools
import json
import math
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from typer.testing import CliRunner

from secateur.cli.main import app
from secateur.compare import Grid, Row
from secateur.compare.grids import PRESETS, read_grid
from secateur.compare.page import draw_page, pareto_points
from secateur.compare.statistics import corrected_t_test, holm
from secateur.compare.summary import COSTS, pareto_front, summarise
from secateur.errors import ConfigError, FileError

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def rows_of(tests: dict[tuple[str, float], list[float]]) -> list[Row]:
    """Rows by (pruning, budget); the n-th pruning costs n times as much."""
    found = []
    for n, ((pruning, budget), values) in enumerate(tests.items(), 1):
        for fold, value in enumerate(values):
            found.append(
                Row(
                    model="net",
                    pruning=pruning,
                    quantization="none",
                    budget=budget,
                    fold=fold,
                    seed=0,
                    measure="accuracy",
                    train=value + 0.1,
                    val=value,
                    test=value,
                    gap=0.1,
                    test_over_train=0.5,
                    params=n,
                    macs=n,
                    size_bytes=n,
                    latency_ms=float(n),
                    speedup=1.0,
                    seconds=1.0,
                )
            )
    return found


ROWS = rows_of(
    {
        ("none", 1.0): [0.9, 0.92, 0.91],
        ("l2", 0.5): [0.85, 0.9, 0.86],
        ("random", 0.5): [0.5, 0.55, 0.4],
        ("<b>odd</b>", 0.25): [0.3, 0.2, 0.25],
    }
)


def test_corrected_test_is_the_plain_one_where_parts_do_not_overlap() -> None:
    differences = [0.1, 0.3, -0.1, 0.2, 0.25]
    assert corrected_t_test(differences, 0.0) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)


def test_corrected_test_by_hand_and_its_edges() -> None:
    d = [0.1, 0.3, -0.1, 0.2]
    t = statistics.mean(d) / math.sqrt((1 / 4 + 1 / 3) * statistics.variance(d))
    assert corrected_t_test(d, 1 / 3) == pytest.approx(2 * (1 - stats.t.cdf(t, 3)))
    assert corrected_t_test(d, 0.5) > corrected_t_test(d, 0.1)
    assert corrected_t_test([0.1], 0.5) is None
    assert corrected_t_test([0.1, 0.1], 0.5) is None
    assert corrected_t_test([0.0, 0.0], 0.5) == 1.0


def test_holm_rejects_what_the_procedure_rejects() -> None:
    """Step by step: the smallest p against a / m, the next against a / (m - 1), until one is above."""
    for p_values in itertools.product([0.001, 0.012, 0.02, 0.049, 0.6], repeat=3):
        for level in (0.05, 0.01, 0.1):
            rejected = set()
            for step, i in enumerate(sorted(range(3), key=lambda i: p_values[i])):
                if p_values[i] > level / (3 - step):
                    break
                rejected.add(i)
            assert {i for i, p in enumerate(holm(p_values)) if p <= level + 1e-12} == rejected


def test_front_is_what_nothing_beats() -> None:
    points = [(c, q) for c in (1.0, 2.0, 3.0) for q in (0.1, 0.5, 0.9)] + [(1.0, 0.9)]
    for (cost, quality), is_there in zip(points, pareto_front(points), strict=True):
        better = [p for p in points if p[0] <= cost and p[1] >= quality and (p[0] < cost or p[1] > quality)]
        assert is_there == (not better)


def test_lines_are_means_and_mark_the_best() -> None:
    lines = {line.pruning: line for line in summarise(ROWS)}
    assert lines["l2"].test == pytest.approx(statistics.mean([0.85, 0.9, 0.86]))
    assert lines["l2"].test_std == pytest.approx(statistics.stdev([0.85, 0.9, 0.86]))
    assert lines["l2"].p == corrected_t_test([0.85 - 0.9, 0.9 - 0.92, 0.86 - 0.91], 0.5)
    assert [name for name, line in lines.items() if line.is_best] == ["l2", "<b>odd</b>"]
    assert [name for name, line in lines.items() if line.pareto] == ["none"]
    raw = [lines[name].p for name in ("l2", "random", "<b>odd</b>")]
    assert [lines[name].p_holm for name in ("l2", "random", "<b>odd</b>")] == holm(raw)
    assert lines["none"].p is None


def test_a_grid_from_a_file_is_the_one_from_python(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('models = ["digits_mlp?width=8"]\nbudgets = [0.5, 0.25]\nfolds = 4\n[measure]\nrepeats = 3\n')
    grid = read_grid(path)
    assert (grid.models, grid.budgets, grid.folds, grid.measure.repeats) == (("digits_mlp?width=8",), (0.5, 0.25), 4, 3)
    assert grid.prunings == Grid().prunings
    path.write_text("fold = 3\n")
    with pytest.raises(ConfigError, match="Did you mean 'folds'"):
        read_grid(path)
    path.write_text("folds = [\n")
    with pytest.raises(FileError, match="can't be read"):
        read_grid(path)


def test_the_mission_has_every_technique() -> None:
    grid = PRESETS["mission"]
    assert {cell.pruning for cell in grid.cells()} >= {"none", "random", "l2", "taylor", "kl", "low_rank", "depth"}
    assert {cell.pruning for cell in grid.cells()} >= {"quantization_pruning", "structured_obs", "unstructured"}
    assert len({cell.quantization for cell in grid.cells()}) == 5


class _Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, Any]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def test_the_page_holds_all_lines_and_asks_for_nothing() -> None:
    lines = summarise(ROWS)
    page = draw_page(lines, "3 cells")
    tags = _Tags()
    tags.feed(page)
    links = [attrs[name] for _, attrs in tags.found for name in ("src", "href") if name in attrs]
    assert links == ["data:,"]
    assert sum(tag == "tr" for tag, _ in tags.found) == 1 + len(lines)
    assert all(tag != "b" for tag, _ in tags.found)
    assert page.count('id="plot-0"') == 1


def test_points_of_a_plot_are_the_lines() -> None:
    points = pareto_points(summarise(ROWS), "macs")
    assert points.names == ("dense", "l2 0.5", "random 0.5", "<b>odd</b> 0.25")
    assert points.x == (1.0, 2.0, 3.0, 4.0)
    assert points.front == (0,)


def test_a_browser_draws_the_page(tmp_path: Path) -> None:
    """Headless Chromium renders a plot per cost and the sorted table, without a fault or a request."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is on this machine")
    path = tmp_path / "compare.html"
    sort = '<script>document.querySelectorAll("th")[3].click()</script></body>'
    path.write_text(draw_page(summarise(ROWS), "3 cells").replace("</body>", sort), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", "--dump-dom", path.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert len(re.findall(r'class="subplot x\d?y\d?"', shown.stdout)) >= len(COSTS)
    values = [
        float(v)
        for v in re.findall(r'<tr class="\w*">(?:<td[^>]*>[^<]*</td>){3}<td data-value="([^"]+)"', shown.stdout)
    ]
    assert values == sorted(values, reverse=True)
    assert len(values) == len(ROWS) / 3
    assert not re.findall(r"CONSOLE|ERR_", shown.stderr), shown.stderr


def test_the_command_writes_rows_a_page_and_a_table(tmp_path: Path) -> None:
    model = "text_cnn?epochs=1&finetune_epochs=1&embed_dim=4&n_channels=4&kernel_sizes=(1,)"
    command = ["--quiet", "compare", "--model", model, "--folds", "2", "--output", str(tmp_path)]
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output
    assert "random" in shown.stdout
    assert "scratch" in shown.stdout
    again = CliRunner().invoke(app, [*command, "--json"])
    summary = json.loads(again.stdout)
    assert (summary["effort"]["n_cells"], summary["effort"]["n_cached"]) == (0, 8)
    assert len(summary["lines"]) == 4
    assert {path.name for path in tmp_path.iterdir()} == {
        "cells",
        "rows.csv",
        "rows.json",
        "summary.json",
        "compare.html",
    }


def test_the_command_wants_to_know_what(tmp_path: Path) -> None:
    shown = CliRunner().invoke(app, ["compare", "--output", str(tmp_path / "x")])
    assert shown.exit_code == 1
    assert "What should be compared?" in shown.stderr
    assert not (tmp_path / "x").exists()
