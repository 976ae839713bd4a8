"""`secateur evaluate`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from secateur.cli.opening import open_data, open_model
from secateur.cli.options import DataOption, JsonOption, SourceArgument, TrustOption, WeightsOption
from secateur.cli.output import print_json, print_table
from secateur.errors import ConfigError


def evaluate(
    source: SourceArgument,
    data: DataOption = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    seed: Annotated[int | None, typer.Option(help="Of the data's cut; by default that of the saved recipe.")] = None,
    weights: WeightsOption = None,
    trust_source: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Measure how well a model classifies. Data comes from --data, or from the recipe in the saved folder."""
    from secateur.measure import evaluate as run

    if split not in ("train", "val", "test"):
        raise ConfigError(f"--split {split!r} is unknown. Choose train, val or test.")
    opened = open_model(source, weights=weights, trust_source=trust_source)
    splits = open_data(data, seed, opened)
    found = run(opened.model, splits.parts()[split])
    if json:
        print_json({"source": source, "split": split, **asdict(found)})
        return
    quality = (found.accuracy, found.precision, found.recall, found.f1)
    rows = [(source, split, *(f"{value:.2%}" for value in quality), f"{found.loss:.4f}", f"{found.n_samples:,}")]
    print_table(("model", "split", "accuracy", "precision", "recall", "F1", "loss", "samples"), rows, n_text=2)
