"""What rows come to: tests, corrections, fronts, choices; grids from files; the command."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
from scipy import stats
from typer.testing import CliRunner

from secateur.cli.main import app
from secateur.compare import Grid
from secateur.compare.grids import PRESETS, read_grid
from secateur.compare.statistics import corrected_t_test, holm
from secateur.compare.summary import highlights, pareto_front, summarise
from secateur.errors import ConfigError, FileError

from .made_rows import ROWS, rows_of


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
    lines = {line.technique: line for line in summarise(ROWS)}
    l2 = lines["l2 0.5"]
    assert l2.test == pytest.approx(statistics.mean([0.85, 0.9, 0.86]))
    assert l2.test_std == pytest.approx(statistics.stdev([0.85, 0.9, 0.86]))
    assert l2.qualities["f1"] == pytest.approx((l2.test / 2, l2.test_std / 2))
    assert l2.qualities.keys() == {"accuracy", "f1"}
    assert l2.p == corrected_t_test([0.85 - 0.9, 0.9 - 0.92, 0.86 - 0.91], 0.5)
    assert [name for name, line in lines.items() if line.is_best] == ["<b>odd</b> 0.25", "l2 0.5 + binary"]
    assert [name for name, line in lines.items() if line.pareto] == ["dense"]
    others = [name for name in lines if name != "dense"]
    assert [lines[name].p_holm for name in others] == holm([lines[name].p for name in others])
    assert lines["dense"].p is None


def test_equal_choices_go_by_the_loss_and_then_by_bytes() -> None:
    def best(*losses: float | None) -> str:
        names = [("none", "none", 1.0), ("a", "none", 0.5), ("b", "none", 0.5)]
        rows = rows_of({name: [0.5, 0.5] for name in names})
        by_name = {"none": None, "a": losses[0], "b": losses[1]}
        lines = summarise([dataclasses.replace(row, val_loss=by_name[row.pruning]) for row in rows])
        (found,) = [line.pruning for line in lines if line.is_best]
        return found

    assert best(0.2, 0.1) == "b"
    assert best(0.1, 0.2) == "a"
    assert best(0.1, 0.1) == best(None, None) == "a"  # the smaller one


def test_highlights_are_dense_then_the_best_and_the_baselines_of_each_budget() -> None:
    found = [line.technique for line in highlights(summarise(ROWS))]
    assert found == ["dense", "l2 0.5 + binary", "random 0.5", "<b>odd</b> 0.25"]


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
