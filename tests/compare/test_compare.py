"""Cells of a comparison: all are there, each is carried out once, kills and caches change nothing."""

from __future__ import annotations

import dataclasses
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import secateur.compare.run as run_module
from secateur.calls import make
from secateur.compare import (
    PRUNINGS,
    QUANTIZATIONS,
    SUBJECTS,
    CifarSubject,
    DigitsMLPSubject,
    Grid,
    Row,
    TextCNNSubject,
    compare,
)
from secateur.compare.folds import cut_folds
from secateur.compare.rows import rows_from_csv, rows_from_json, rows_to_csv, rows_to_json
from secateur.compare.subjects import texts_of
from secateur.compare.work import scale_for, task_of, train_start
from secateur.compression.config import MeasureConfig
from secateur.errors import ConfigError, DataError, FileError
from secateur.graph import trace
from secateur.train import WordDropout

MODEL = "text_cnn?epochs=4&finetune_epochs=1&embed_dim=8&n_channels=8&kernel_sizes=(1,2)"
QUICK = MeasureConfig(batch_size=4, repeats=3, max_seconds=0.02, n_threads=1)
TINY = Grid(models=(MODEL,), quantizations=("none", "int8_per_channel"), folds=2, n_calibration=16, measure=QUICK)


def without_times(rows: Any) -> list[Row]:
    times = {"latency_ms": 0.0, "speedup": 0.0, "seconds": 0.0, "seconds_outside": 0.0}
    return [dataclasses.replace(row, **times) for row in rows]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compare")


@pytest.fixture(scope="module")
def done(folder: Path) -> Any:
    return compare(TINY, folder, progress=False)


def test_every_cell_of_the_grid_has_a_row_in_order(done: Any) -> None:
    assert [row.cell for row in done.rows] == TINY.cells()
    by_hand = [
        (fold, pruning, quantization)
        for fold in range(2)
        for pruning in ("none", "l2", "random", "scratch")
        for quantization in ("none", "int8_per_channel")
    ]
    assert [(row.fold, row.pruning, row.quantization) for row in done.rows] == by_hand
    assert all(row.is_done for row in done.rows)


def test_a_row_is_what_its_name_says(done: Any) -> None:
    """Budgets are kept, quantized networks are smaller on disk and not in MACs; the gap is what it is defined as."""
    rows = {(row.pruning, row.quantization): row for row in done.rows if row.fold == 0}
    dense = rows["none", "none"]
    for (pruning, quantization), row in rows.items():
        assert row.gap == pytest.approx(row.train - row.test)
        assert row.test == row.accuracy
        assert row.macs <= dense.macs * (1.0 if pruning == "none" else 0.5)
        if quantization != "none":
            plain = rows[pruning, "none"]
            assert row.size_bytes < plain.size_bytes
            assert row.macs == plain.macs


def test_what_is_there_is_not_done_again(done: Any, folder: Path) -> None:
    again = compare(TINY, folder, progress=False)
    assert again.rows == done.rows
    assert (again.effort.n_cells, again.effort.n_trained, again.effort.n_cached) == (0, 0, len(done.rows))


def test_a_wider_grid_shares_the_cells_of_a_narrower_one(done: Any, folder: Path) -> None:
    wider = dataclasses.replace(TINY, quantizations=("none", "int8_per_channel", "binary"))
    found = compare(wider, folder, progress=False)
    assert (found.effort.n_cells, found.effort.n_cached, found.effort.n_trained) == (8, len(done.rows), 0)
    other = dataclasses.replace(TINY, n_calibration=8)
    assert all(run_module.Store(folder, other).row(cell) is None for cell in other.cells())


def test_a_killed_run_goes_on_and_ends_with_the_same_rows(
    done: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = run_module.run_cell, []

    def killed(*args: Any) -> Row:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(real(*args))
        return seen[-1]

    monkeypatch.setattr(run_module, "run_cell", killed)
    with pytest.raises(KeyboardInterrupt):
        compare(TINY, tmp_path, progress=False)
    monkeypatch.undo()
    again = compare(TINY, tmp_path, progress=False)
    assert (again.effort.n_cached, again.effort.n_trained) == (3, 0)
    assert without_times(again.rows) == without_times(done.rows)


@pytest.mark.slow  # starts the command twice
def test_a_command_that_is_killed_outright_goes_on(done: Any, tmp_path: Path) -> None:
    """SIGKILL as soon as a few cells are there: nothing half-written is read, and only what is missing is done."""
    (tmp_path / "grid.toml").write_text(
        f"models = [{MODEL!r}]\nquantizations = ['none', 'int8_per_channel']\nfolds = 2\nn_calibration = 16\n"
        "[measure]\nbatch_size = 4\nrepeats = 3\nmax_seconds = 0.02\nn_threads = 1\n"
    )
    command = [sys.executable, "-m", "secateur.cli", "compare", str(tmp_path / "grid.toml"), "--json"]
    command += ["--output", str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(list(tmp_path.glob("out/cells/cell-*.json"))) < 3:
            time.sleep(0.02)
        process.kill()
    n_kept = len(list(tmp_path.glob("out/cells/cell-*.json")))
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "out" / "rows.csv").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    effort = json.loads(again.stdout)["effort"]
    assert (effort["n_cached"], effort["n_cells"]) == (n_kept, len(done.rows) - n_kept)
    assert effort["n_trained"] == 0
    found = rows_from_csv((tmp_path / "out" / "rows.csv").read_text())
    assert without_times(found) == without_times(done.rows)


@pytest.mark.slow  # two processes that import torch
def test_processes_change_nothing(done: Any, tmp_path: Path) -> None:
    found = compare(TINY, tmp_path, n_jobs=2, progress=False)
    assert without_times(found.rows) == without_times(done.rows)


def test_files_of_rows_read_back(done: Any) -> None:
    rows = [*done.rows, dataclasses.replace(done.rows[0], reason='no "way", here\nor there', test=None, params=None)]
    assert rows_from_csv(rows_to_csv(rows)) == rows
    assert rows_from_json(rows_to_json(rows)) == rows
    before = [{name: value for name, value in dataclasses.asdict(row).items() if name != "nmi"} for row in rows]
    assert rows_from_json(json.dumps(before)) == rows  # a measure that there was none of yet


def test_a_damaged_row_is_refused(tmp_path: Path, done: Any) -> None:
    store = run_module.Store(tmp_path, TINY)
    store.keep_row(done.rows[0])
    (path,) = tmp_path.glob("cell-*.json")
    path.write_text(path.read_text().replace('"seed"', '"sed"'))
    with pytest.raises(FileError, match="Delete it"):
        store.row(done.rows[0].cell)


def test_what_cannot_be_combined_says_why(tmp_path: Path) -> None:
    grid = dataclasses.replace(
        TINY, prunings=("quantization_pruning", "unstructured", "depth"), quantizations=("binary",)
    )
    rows = {(r.pruning, r.quantization): r for r in compare(grid, tmp_path, progress=False).rows if r.fold == 0}
    assert "quantized weights" in rows["quantization_pruning", "binary"].reason
    assert "no zero" in rows["unstructured", "binary"].reason
    assert "depth needs two" in rows["depth", "none"].reason
    assert rows["depth", "none"].test is None
    assert rows["quantization_pruning", "none"].is_done
    assert rows["unstructured", "none"].is_done


def test_images_come_from_a_file_of_the_users(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    x = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    np.savez(path, x_train=x[:16], y_train=np.arange(16) % 2, x_val=x[16:], y_val=np.arange(8) % 2)
    settings = {"data": str(path), "depth": 14, "width": 4, "epochs": 1, "finetune_epochs": 1, "batch_size": 8}
    text = "cifar_resnet20?" + "&".join(f"{name}={value!r}" for name, value in settings.items())
    assert CifarSubject(**settings).labels().tolist() == [*np.arange(16) % 2, *np.arange(8) % 2]
    grid = dataclasses.replace(TINY, models=(text,), prunings=("depth",), quantizations=("none",), n_calibration=8)
    rows = {row.pruning: row for row in compare(grid, tmp_path / "cells", progress=False).rows if row.fold == 0}
    assert all(row.is_done for row in rows.values())
    assert rows["scratch"].macs <= 0.5 * rows["none"].macs
    with pytest.raises(ConfigError, match="Which images"):
        Grid(models=("cifar_resnet20",))


@pytest.mark.slow
def test_every_technique_works_on_some_model(tmp_path: Path) -> None:
    grid = dataclasses.replace(
        TINY,
        models=("digits_mlp?epochs=1&finetune_epochs=1&width=16",),
        prunings=tuple(name for name in PRUNINGS if name != "vocabulary"),  # see the next test
        quantizations=tuple(QUANTIZATIONS),
        n_calibration=32,
    )
    store = run_module.Store(tmp_path, grid)
    cells = [c for c in grid.cells() if c.fold == 0 and "none" in (c.pruning, c.quantization)]
    for start in dict.fromkeys(s for c in cells for s in (c.start, c.dense)):
        train_start(start, grid, store)
    rows = [run_module.run_cell(cell, grid, store) for cell in cells]
    assert {r.pruning for r in rows} == set(PRUNINGS) - {"vocabulary"}
    assert {r.quantization for r in rows} == set(QUANTIZATIONS)
    assert [r.reason for r in rows if not r.is_done] == []


def test_klda_is_compared_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other classes for the same texts give the same networks; the measures are of clusters."""
    model = "klda?hidden=(8,8)&pretrain_epochs=4&epochs=1&finetune_epochs=1"
    grid = dataclasses.replace(TINY, models=(model,), prunings=("kl", "vocabulary"), quantizations=("none",))
    start = grid.cells()[0].start
    task, _ = task_of(start, grid)
    names = ("adjusted_rand", "nmi", "purity", "silhouette", "log_likelihood")
    model_a = task.fit(1.0)
    assert {*task.score(model_a, "test")} <= {*names}  # no silhouette of a single cluster
    relabelled = dataclasses.replace(task, classes=torch.zeros_like(task.classes))
    model_b = relabelled.fit(1.0)
    for a, b in zip(model_a.parameters(), model_b.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(task.splits(model_a).train.y, relabelled.splits(model_b).train.y)
    rows = compare(grid, tmp_path, progress=False).rows
    assert all(row.is_done and row.measure == "nmi" and row.accuracy is None for row in rows)
    macs = {row.pruning: row.macs for row in rows}
    assert macs["vocabulary"] == macs["none"] - 4 * 8  # half of the eight words, which eight hidden units read


def test_vocabularies_come_from_the_training_part() -> None:
    grid = TINY
    for start in grid.starts()[:1]:
        task, cut = task_of(start, grid)
        texts, _, _ = texts_of("fruit")
        known = {word for i in cut.train for word in texts[i].split()}
        assert set(task.splits(task.build(1.0)).words.listed[2:]) == known


def test_a_network_from_scratch_is_the_widest_within_the_budget() -> None:
    subject = DigitsMLPSubject(width=16, n_hidden=1)
    cut = cut_folds(subject.labels(), 2, 0, 0.2)[0]
    task = subject.task(cut, 0)

    def macs(n: int) -> int:
        return trace(task.build(n / 64), torch.zeros(1, 1, 8, 8)).cost().macs

    for budget in (0.25, 0.5):
        slow = max(n for n in range(1, 65) if macs(n) <= budget * macs(64))
        assert scale_for(task, budget) == slow / 64


def test_folds_cover_all_samples_and_never_mix() -> None:
    labels = np.repeat([0, 1, 2], 7)
    cuts = cut_folds(labels, 3, seed=1, val_fraction=0.2)
    assert sorted(np.concatenate([cut.test for cut in cuts])) == list(range(21))
    for cut in cuts:
        assert sorted(np.concatenate([cut.train, cut.val, cut.test])) == list(range(21))
        assert set(labels[cut.val]) == {0, 1, 2}
        assert cut.test_over_train == len(cut.test) / (21 - len(cut.test))


@pytest.mark.parametrize("n_folds", [1, 3])
def test_what_is_held_out_is_in_no_fold_and_is_the_test_part_of_one(n_folds: int) -> None:
    held, labels = [2, 9, 16], np.repeat([0, 1, 2], 7)
    cuts = cut_folds(labels, n_folds, seed=1, val_fraction=0.2, held_out=held)
    rest = sorted({*range(21)} - {*held})
    for cut in cuts:
        assert sorted(np.concatenate([cut.train, cut.val])) == sorted({*rest} - {*cut.test})
        assert not {*held} & {*cut.train, *cut.val}
    assert sorted(np.concatenate([cut.test for cut in cuts])) == (held if n_folds == 1 else rest)


def test_two_files_of_texts_are_a_published_split(tmp_path: Path) -> None:
    """One fold trains on the first and reports on the second, whose words and labels nothing else sees."""
    lines = {"train": ["a good fig,1", "a bad fig,0"] * 10, "test": ["a good date,1", "a bad date,0"] * 2}
    for name, of_file in lines.items():
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(of_file))
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    model = f"{MODEL}&data='{train}'&test='{test}'"
    grid = dataclasses.replace(TINY, models=(model,), folds=1)
    (start,) = [start for start in grid.starts() if start.budget == 1]
    task, cut = task_of(start, grid)
    assert cut.test.tolist() == [20, 21, 22, 23]
    assert "date" not in task.splits(task.build(1.0)).words.listed
    run_module.Store(tmp_path / "cells", grid).keep_start(start, task.build(1.0), 1.0)
    assert run_module.Store(tmp_path / "cells", grid).has_start(start)
    test.write_text("text,label\na good date,1\na bad grape,0")
    assert not run_module.Store(tmp_path / "cells", grid).has_start(start)
    (tmp_path / "other.csv").write_text("text,label\nso so,2")
    with pytest.raises(DataError, match="Make them the same"):
        make(SUBJECTS, model.replace(str(test), str(tmp_path / "other.csv"))).labels()


def test_a_start_is_trained_again_where_a_default_of_its_model_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = TINY.starts()[0]
    network = task_of(start, TINY)[0].build(1.0)
    run_module.Store(tmp_path, TINY).keep_start(start, network, 1.0)
    assert run_module.Store(tmp_path, TINY).has_start(start)
    monkeypatch.setitem(TextCNNSubject.__init__.__kwdefaults__, "word_dropout", 0.125)
    assert not run_module.Store(tmp_path, TINY).has_start(start)


def test_digits_can_be_held_out_and_words_dropped_in_training() -> None:
    digits = DigitsMLPSubject(n_test=100)
    assert len(digits.held_out()) == len(set(digits.held_out())) == 100
    assert len(DigitsMLPSubject().held_out()) == 0
    cut = cut_folds(TextCNNSubject().labels(), 3, 0, 0.2)[0]
    for p, expected in ((0.0, None), (0.2, WordDropout(p=0.2))):
        task = TextCNNSubject(word_dropout=p).task(cut, 0)
        assert task.train.augment == task.finetune.train.augment == expected


def test_budgets_may_count_parameters(tmp_path: Path) -> None:
    grid = dataclasses.replace(
        TINY, cost="params", quantizations=("none",), prunings=("l2", "structured_obs"), seeds=(1,)
    )
    cells = [cell for cell in grid.cells() if cell.fold == 0]
    rows = {row.pruning: row for row in compare(grid, tmp_path, cells=cells, progress=False).rows}
    assert list(rows) == ["none", "l2", "structured_obs", "random", "scratch"]
    assert all(row.params <= 0.5 * rows["none"].params for name, row in rows.items() if name != "none")
    by_macs = dataclasses.replace(grid, cost="macs")
    assert run_module.Store(tmp_path, by_macs).row(cells[0]) is None


def test_faults_of_a_grid_are_said_at_once() -> None:
    with pytest.raises(ConfigError, match="cost='bytes' is none of macs, params"):
        Grid(cost="bytes")
    with pytest.raises(DataError, match="held out of it"):
        cut_folds([0, 1] * 5, 1, 0, 0.2)
    with pytest.raises(ConfigError, match="outside \\(0, 1\\)"):
        Grid(budgets=(1.5,))
    with pytest.raises(KeyError, match="No pruning 'l3'"):
        Grid(prunings=("l3",))
    with pytest.raises(ConfigError, match="has no 'widht'"):
        Grid(models=("digits_cnn?widht=4",))
    with pytest.raises(ConfigError, match="twice"):
        Grid(seeds=(0, 0))
    with pytest.raises(DataError, match="too few for 20 folds"):
        cut_folds([0] * 30 + [1] * 5, 20, 0, 0.1)
