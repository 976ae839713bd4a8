"""`secateur compress` and `secateur demo`, which is the default recipe with a second process at its end."""

from __future__ import annotations

import json as json_format
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from secateur.cli.opening import open_model, read_data
from secateur.cli.options import ForceOption, JsonOption, TrustOption
from secateur.cli.output import print_json, print_line, print_table
from secateur.compression import Composed, Compressed, run_steps
from secateur.compression import compress as run_compress
from secateur.compression.report import HEADER, row
from secateur.data import DataSplits
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
    finetuned = done.report.stages()["finetuned"]
    if again["accuracy"] != finetuned.accuracy:
        raise FileError(
            f"The model loaded from '{folder}' has another accuracy than the one saved: {again['accuracy']}."
        )
    if json:
        print_json({**done.report.to_dict(), "folder": str(folder), "reloaded": again})
        return
    _print(done, folder)
    print_line(f"a new process loaded it and found the same accuracy, {again['accuracy']:.2%}")


def run_recipe(recipe: Recipe, folder: Path, *, overwrite: bool, trust_source: bool = False) -> Compressed | Composed:
    """Carry a recipe out and save the result. Where it lists steps, a killed run goes on from `FOLDER.steps`."""
    from secateur.train import fit_

    check_target(folder.absolute(), overwrite=overwrite)
    config = recipe.model
    opened = open_model(config.source, weights=config.weights, seed=config.seed, trust_source=trust_source)
    splits = read_data(recipe.data, recipe.read)
    log.info("%s", splits)
    checkpoints = folder.absolute().with_name(f"{folder.absolute().name}.steps")
    if recipe.train is not None:
        log.info("train %s for %d epochs", config.source, recipe.train.epochs)
        kept = checkpoints / "dense.training.safetensors" if recipe.steps else None
        fit_(opened.model, splits.train, splits.val, recipe.train, checkpoint=kept)
    done = _carry_out(recipe, opened.model, splits, checkpoints)
    edits = opened.edits
    for edit in done.edits.steps:
        edits = edits.then(edit)
    log.info("save in %s", folder)
    save(
        done.model,
        folder,
        plan=edits,
        source=opened.source,
        recipe=write_recipe(recipe),
        report=done.report.to_dict(),
        overwrite=overwrite,
        is_compact=recipe.output.is_compact,
    )
    shutil.rmtree(checkpoints, ignore_errors=True)
    return done


def _carry_out(recipe: Recipe, model: nn.Module, splits: DataSplits, checkpoints: Path) -> Compressed | Composed:
    config = recipe.compress_config()
    if recipe.steps:
        return run_steps(model, splits, recipe.steps, config=config, checkpoints=checkpoints)
    return run_compress(model, splits, budget=recipe.budget, config=config)


def _evaluate_elsewhere(folder: Path) -> dict[str, Any]:
    """Load the folder in a new process of the same interpreter and evaluate it on the test split of its recipe."""
    command = [sys.executable, "-m", "secateur.cli", "--quiet", "evaluate", os.path.abspath(folder), "--json"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise FileError(f"A new process could not evaluate '{folder}': {result.stderr.strip()}")
    found: dict[str, Any] = json_format.loads(result.stdout)
    return found


def _print(done: Compressed | Composed, folder: Path) -> None:
    names = {"finetuned": "fine-tuned"}
    print_table(HEADER, [row(names.get(name, name), m) for name, m in done.report.stages().items()])
    print_line(f"on {done.report.n_samples['test']:,} samples that neither training nor selection saw")
    print_line(done.report.latency_line())
    for line in done.report.further_lines():
        print_line(line)
    print_line(f"saved in {folder}")
