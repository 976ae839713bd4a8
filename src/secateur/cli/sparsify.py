"""`secateur sparsify`."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Annotated

import typer

from secateur.cli.opening import open_calibration, open_data, open_model
from secateur.cli.options import (
    DataOption,
    ForceOption,
    IgnoreOption,
    JsonOption,
    ShapeOption,
    SourceArgument,
    TrustOption,
    WeightsOption,
)
from secateur.cli.output import print_json, print_line, print_table
from secateur.files import check_target, save
from secateur.sparsity import PATTERNS, SCOPES, SCORES
from secateur.specs import to_spec
from secateur.steps.base import Done
from secateur.steps.sparsify import Sparsify
from secateur.steps.sparsify import sparsify as run_sparsify

log = logging.getLogger("secateur")


def sparsify(
    source: SourceArgument,
    output: Annotated[Path, typer.Option(help="Folder for the sparse model.")],
    sparsity: Annotated[
        float | None, typer.Option(help="Fraction of weights that become zero; default: the pattern's own, or 0.5.")
    ] = None,
    pattern: Annotated[
        str, typer.Option(help=f"Which may go together: 2:4, or settings after '?': {', '.join(sorted(PATTERNS))}.")
    ] = "unstructured",
    score: Annotated[
        str, typer.Option(help=f"What scores weights; all but magnitude take --data: {', '.join(sorted(SCORES))}.")
    ] = "magnitude",
    scope: Annotated[
        str | None, typer.Option(help=f"What is compared; default: as its paper does: {', '.join(sorted(SCOPES))}.")
    ] = None,
    ignore: IgnoreOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    input_shape: ShapeOption = None,
    seed: Annotated[int, typer.Option(help="Of fresh weights, the data's cut, and the calibration samples.")] = 0,
    trust_source: TrustOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Set weights to zero, with masks that keep them there, and save the model. Nothing is trained."""
    step = Sparsify(sparsity=sparsity, pattern=pattern, score=score, scope=scope, ignore=tuple(ignore or ()))
    check_target(output.absolute(), overwrite=force)
    opened = open_model(source, weights=weights, seed=seed, trust_source=trust_source)
    splits = None if data is None else open_data(data, seed, opened)
    inputs = opened.inputs(input_shape, splits)
    log.info("sparsifying")
    done = run_sparsify(opened.model, open_calibration(splits, seed), step)
    edits = opened.edits if done.edit is None else opened.edits.then(done.edit)
    if edits.inputs is None:
        edits = dataclasses.replace(edits, inputs=to_spec(inputs))
    save(done.model, output, plan=edits, source=opened.source, overwrite=force)
    _print(opened.name, done, output, is_json=json)


def _print(name: str, done: Done, output: Path, *, is_json: bool) -> None:
    layers = done.facts["layers"]
    if is_json:
        skipped = [list(pair) for pair in done.skipped]
        print_json(
            {"source": name, "folder": str(output), "layers": layers, "skipped": skipped, "notes": list(done.notes)}
        )
        return
    rows = [
        (key, f"{fact['weights']:,}", f"{fact['zeros']:,}", f"{fact['zeros'] / fact['weights']:.1%}")
        for key, fact in layers.items()
    ]
    print_table(("weight", "size", "zeros", "part"), rows)
    for note in done.notes:
        print_line(note)
    print_line(f"{len(done.skipped)} weights left alone; reasons with --json")
    print_line(f"saved in {output}")
