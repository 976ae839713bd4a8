"""Classifiers 2, 4 and 8 times smaller: the recipe that `compare` finds best, beside its baselines.

Bytes are those of the model file. For each of three classifiers (TextCNN on SST-2 and on AG News, the digits CNN):

1. Candidates (prunings x quantizations x budgets) are carried out on folds of the training samples. Of those whose file
   is at least so many times smaller than the dense one, the one with the best mean accuracy over the folds' test parts
   is the recipe of that ratio; ties go to the smaller file. The held-out samples take no part.
2. Dense network and recipe are trained anew on the whole training part, per seed, and evaluated once on the held-out
   samples: SST-2's published test part; 1,600 of AG News' 7,600 texts; 360 digits. All are fine-tuned alike, the dense
   one too, and the last epoch counts. Beside each recipe stand random pruning to the same budget with the same
   quantization, and a network of that budget trained from nothing, with the same quantization.

Budgets of widths count parameters, those of words count words. A recipe without pruning has baselines of 1 / ratio of
the parameters, unquantized. Finished cells are kept in a folder, so a run that was killed goes on.
"""

from __future__ import annotations

import argparse
import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sklearn.model_selection import train_test_split

from rows import machine, read_rows, write_rows
from secateur.compare import Cell, Grid, Row, compare
from secateur.compare.summary import Line, summarise
from secateur.compare.techniques import DENSE, RANDOM, SCRATCH
from secateur.compression.config import MeasureConfig
from secateur.data import read_texts

RATIOS = (2, 4, 8)
COLUMNS = (
    *("data", "smaller", "network", "accuracy", "spread", "folds", "times", "bytes", "params", "macs"),
    "accuracies",
)
UNTIMED = MeasureConfig(batch_size=1, repeats=3, max_seconds=0.01, n_threads=1)  # the machine is shared
TEXT_CNN = (
    "text_cnn?data={data!r}&test={test!r}&embed_dim=32&n_channels=32&kernel_sizes=(1,2,3)&lr=3e-3&batch_size=128"
    "&word_dropout=0.3&finetune_epochs=2&max_words=10000"
)
HELD_OUT = {"ag_news": 1600, "digits": 360}


@dataclass(frozen=True, kw_only=True)
class Study:
    """One classifier: its model for `compare`, and what may make it smaller."""

    name: str
    model: str
    prunings: tuple[str, ...]
    quantizations: tuple[str, ...] = ("none", "int8_per_channel", "int4_per_group")
    budgets: tuple[float, ...] = (0.5, 0.25)

    def grid(self, folds: int, seeds: Sequence[int], **changes: Any) -> Grid:
        """All candidates, on folds of the training samples, or on the held-out ones with one fold."""
        grid = Grid(
            models=(self.model,),
            prunings=self.prunings,
            quantizations=self.quantizations,
            budgets=self.budgets,
            cost="params",
            folds=folds,
            seeds=tuple(seeds),
            val_fraction=0.05,
            n_calibration=256,
            measure=UNTIMED,
        )
        return replace(grid, **changes)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The recipe of one ratio or several, and what it did on the folds."""

    ratios: tuple[int, ...]
    line: Line

    def cell(self, dense: Cell, pruning: str) -> Cell:
        """The recipe's own cell, or that of a baseline, beside a dense one."""
        if self.line.pruning == DENSE:  # nothing is pruned: baselines have the ratio's parameters, unquantized
            quantization = self.line.quantization if pruning == DENSE else DENSE
            return replace(
                dense,
                pruning=pruning,
                quantization=quantization,
                budget=1.0 if pruning == DENSE else 1 / max(self.ratios),
            )
        return replace(dense, pruning=pruning, quantization=self.line.quantization, budget=self.line.budget)

    @property
    def name(self) -> str:
        """Pruning with its budget, and quantization."""
        line = self.line
        parts = [] if line.pruning == DENSE else [f"{line.pruning} {line.budget:g}"]
        return ", ".join([*parts, *([line.quantization] if line.quantization != DENSE else [])])


def choose(study: Study, folds: int, seed: int, folder: Path, jobs: int) -> tuple[Line, list[Choice]]:
    """The dense network's line, and the best recipe of each ratio, by cross-validation on the training samples."""
    grid = study.grid(folds, (seed,))
    cells = [cell for cell in grid.cells() if cell.pruning not in (RANDOM, SCRATCH)]
    lines = [line for line in summarise(compare(grid, folder, cells=cells, n_jobs=jobs).rows) if line.n]
    dense = next(line for line in lines if line.is_dense)
    found: list[Choice] = []
    for ratio in RATIOS:
        if fitting := [line for line in lines if dense.size_bytes >= ratio * line.size_bytes]:
            best = max(fitting, key=lambda line: (line.test, -line.size_bytes))
            before = found.pop().ratios if found and found[-1].line == best else ()
            found.append(Choice(ratios=(*before, ratio), line=best))
    return dense, found


def report(
    study: Study, by_folds: Line, choices: Sequence[Choice], seeds: Sequence[int], folder: Path, jobs: int
) -> list[dict[str, Any]]:
    """Rows of the dense network, the recipes and their baselines on the held-out samples."""
    fields = {"model": study.model, "fold": 0, "pruning": DENSE, "quantization": DENSE, "budget": 1.0}
    dense = [Cell(**fields, seed=seed) for seed in seeds]
    wanted: list[tuple[str, str, Line | None, list[Cell]]] = [("1x", "dense", by_folds, dense)]
    for choice in choices:
        ratios = " ".join(f"{ratio}x" for ratio in choice.ratios)
        own = [choice.cell(cell, choice.line.pruning) for cell in dense]
        wanted.append((ratios, choice.name, choice.line, own))
        for baseline in (RANDOM, SCRATCH):
            cells = [choice.cell(cell, baseline) for cell in dense]
            wanted.append((ratios, f"{baseline} {cells[0].budget:g}, {cells[0].quantization}", None, cells))
    distinct = list(dict.fromkeys(cell for *_, cells in wanted for cell in cells))
    done = {row.cell: row for row in compare(study.grid(1, seeds), folder, cells=distinct, n_jobs=jobs).rows}
    whole = fmean(done[cell].size_bytes for cell in dense)
    rows = []
    for ratios, name, line, cells in wanted:
        chosen = {} if line is None else {"folds": line.test, "folds spread": line.test_std, "n folds": line.n}
        row = _row([done[cell] for cell in cells], whole)
        rows.append({"data": study.name, "smaller": ratios, "network": name, **row, **chosen})
    return rows


def _row(rows: Sequence[Row], whole: float) -> dict[str, Any]:
    accuracies = [row.test for row in rows]
    size = fmean(row.size_bytes for row in rows)
    return {
        "accuracy": fmean(accuracies),
        "spread": stdev(accuracies) if len(accuracies) > 1 else None,
        "times": whole / size,
        "bytes": round(size),
        "params": round(fmean(row.params for row in rows)),
        "macs": round(fmean(row.macs for row in rows)),
        "accuracies": [round(value, 4) for value in accuracies],
        "f1": fmean(row.f1 for row in rows),
        "seeds": [row.seed for row in rows],
        "notes": rows[0].notes,
    }


def cut_texts(path: Path, n_test: int, folder: Path) -> tuple[Path, Path]:
    """Write one file of texts as two, stratified, the same for all seeds."""
    texts, labels, classes = read_texts(str(path))
    order = train_test_split(range(len(texts)), test_size=n_test, stratify=labels.numpy(), random_state=0)
    made = []
    for part, indices in zip(("train", "test"), order, strict=True):
        made.append(folder / f"{path.name.split('.')[0]}_{part}_{len(indices)}.csv")
        with made[-1].open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([texts[i], classes[labels[i]]] for i in indices)
    return made[0], made[1]


def without_folders(model: str) -> str:
    """A model's text with names of files in place of paths."""
    return re.sub(r"'[^']*/([^'/]+)'", r"'\1'", model)


def studies(args: argparse.Namespace) -> list[Study]:
    """Those that were asked for."""
    words = ("vocabulary", "structured_obs")
    found = []
    if args.sst2_train and args.sst2_test:
        model = TEXT_CNN.format(data=str(args.sst2_train), test=str(args.sst2_test))
        found.append(Study(name="sst2", model=f"{model}&epochs=4&max_length=32", prunings=words))
    if args.ag_news:
        train, test = cut_texts(args.ag_news, HELD_OUT["ag_news"], args.folder)
        model = TEXT_CNN.format(data=str(train), test=str(test))
        found.append(Study(name="ag_news", model=f"{model}&epochs=6&max_length=50", prunings=words))
    if args.digits:
        model = f"digits_cnn?n_test={HELD_OUT['digits']}"
        found.append(Study(name="digits", model=model, prunings=("taylor", "structured_obs", "unstructured")))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sst2-train", type=Path, help="a .csv or .csv.gz with columns text and label")
    parser.add_argument("--sst2-test", type=Path, help="the published test part")
    parser.add_argument("--ag-news", type=Path, help="texts of which 1,600 are held out")
    parser.add_argument("--digits", action="store_true", help="the digits CNN, on what comes with scikit-learn")
    parser.add_argument("--folder", type=Path, default=Path("classifiers-cells"), help="of what is finished")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=3, help="of the training samples, to choose by")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--output", default="classifiers", help="name of the files in results/")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    facts = {"folds asked": args.folds, "machine": machine("scikit-learn", "numpy")}
    asked = studies(args)
    rows = [row for row in read_rows(args.output) if row["data"] not in {study.name for study in asked}]
    for study in asked:
        by_folds, choices = choose(study, args.folds, args.seeds[0], args.folder, args.jobs)
        for row in report(study, by_folds, choices, args.seeds, args.folder, args.jobs):
            rows.append({**row, "model": without_folders(study.model), **facts})
        write_rows(args.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
