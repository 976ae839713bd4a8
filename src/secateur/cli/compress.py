"""`secateur compress` and `secateur demo`, which is the default recipe with a second process at its end."""

from __future__ import annotations

import json as json_format
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.opening import open_model, read_data
from secateur.cli.options import ForceOption, JsonOption, TrustOption
from secateur.cli.output import print_json, print_line, print_table
from secateur.compression import Compressed
from secateur.compression import compress as run_compress
from secateur.compression.report import HEADER, row
from secateur.edits import Prune
from secateur.errors import ConfigError, FileError
from secateur.files import check_target, save
from secateur.recipe import Recipe, read_recipe, write_recipe

log = logging.getLogger("secateur")
DEMO_FOLDER = Path("secateur-demo")


def compress(
    recipe: Annotated[Path, typer.Argument(help="A TOML file; `secateur recipe` prints one.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the smaller model; default: of [output].")] = None,
    trust_source: TrustOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Do what a recipe says: prune, prove, fine-tune, measure before and after, save."""
    settings = read_recipe(recipe)
    folder = output or (Path(settings.output.folder) if settings.output.folder else None)
    if folder is None:
        raise ConfigError("Where should the smaller model go? Give --output DIR, or folder in the section [output].")
    done = run_recipe(settings, folder, overwrite=force, trust_source=trust_source)
    report = {**done.report.to_dict(), "folder": str(folder)}
    print_json(report) if json else _print(done, folder)


def demo(
    output: Annotated[
        Path | None, typer.Option(help="Folder for the smaller model; by default ./secateur-demo, made anew each time.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.", min=0)] = 0,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Train a small CNN on scanned digits, prune it to 40 % of its MACs, prove, fine-tune, save, load again."""
    folder = output or DEMO_FOLDER
    done = run_recipe(Recipe().with_seed(seed), folder, overwrite=force or output is None)
    log.info("load it in a new process and evaluate it there")
    again = _evaluate_elsewhere(folder)
    finetuned = done.report.finetuned
    if finetuned is None or again["accuracy"] != finetuned.accuracy:
        raise FileError(
            f"The model loaded from '{folder}' has another accuracy than the one saved: {again['accuracy']}."
        )
    if json:
        print_json({**done.report.to_dict(), "folder": str(folder), "reloaded": again})
        return
    _print(done, folder)
    print_line(f"a new process loaded it and found the same accuracy, {again['accuracy']:.2%}")


def run_recipe(recipe: Recipe, folder: Path, *, overwrite: bool, trust_source: bool = False) -> Compressed:
    """Carry a recipe out and save the result."""
    from secateur.train import fit_

    check_target(folder.absolute(), overwrite=overwrite)
    config = recipe.model
    opened = open_model(config.source, weights=config.weights, seed=config.seed, trust_source=trust_source)
    splits = read_data(recipe.data, recipe.read)
    log.info("%s", splits)
    if recipe.train is not None:
        log.info("train %s for %d epochs", config.source, recipe.train.epochs)
        fit_(opened.model, splits.train, splits.val, recipe.train)
    done = run_compress(opened.model, splits, budget=recipe.budget, config=recipe.compress_config())
    edits = opened.edits.then(Prune(done.plan))
    log.info("save in %s", folder)
    save(
        done.model,
        folder,
        plan=edits,
        source=opened.source,
        recipe=write_recipe(recipe),
        report=done.report.to_dict(),
        overwrite=overwrite,
    )
    return done


def _evaluate_elsewhere(folder: Path) -> dict[str, Any]:
    """Load the folder in a new process of the same interpreter and evaluate it on the test split of its recipe."""
    command = [sys.executable, "-m", "secateur.cli", "--quiet", "evaluate", os.path.abspath(folder), "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise FileError(f"A new process could not evaluate '{folder}': {result.stderr.strip()}")
    found: dict[str, Any] = json_format.loads(result.stdout)
    return found


def _print(done: Compressed, folder: Path) -> None:
    names = {"finetuned": "fine-tuned"}
    print_table(HEADER, [row(names.get(name, name), m) for name, m in done.report.stages().items()])
    print_line(f"on {done.report.n_samples['test']:,} samples that neither training nor selection saw")
    print_line(done.report.latency_line())
    if done.report.tries:
        print_line(done.report.search_line())
    print_line(done.report.verify)
    for note in done.report.notes:
        print_line(f"note: {note}")
    print_line(f"saved in {folder}")
