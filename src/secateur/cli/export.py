"""`secateur export`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from secateur.cli.opening import open_model
from secateur.cli.options import ForceOption, JsonOption, ShapeOption, SourceArgument, TrustOption, WeightsOption
from secateur.cli.output import print_json, print_line


def export(
    source: SourceArgument,
    file: Annotated[Path, typer.Argument(help="model.onnx or model.pt2.")],
    input_shape: ShapeOption = None,
    weights: WeightsOption = None,
    dynamic_batch: Annotated[bool, typer.Option("--dynamic-batch", help="Batches of any size.")] = False,
    tolerance: Annotated[
        float | None, typer.Option(help="Largest relative difference allowed; default: of the dtype.")
    ] = None,
    trust_source: TrustOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Write a model as one file that needs none of its code, and compare what the file computes."""
    from secateur.frameworks.export import export as run

    model, inputs = _open(source, input_shape, weights, trust_source=trust_source)
    report = run(model, file, inputs, dynamic_batch=dynamic_batch, tolerance=tolerance, overwrite=force)
    if json:
        print_json({**asdict(report), "path": str(report.path)})
    else:
        print_line(str(report))


def _open(source: str, input_shape: str | None, weights: Path | None, *, trust_source: bool) -> tuple[Any, Any]:
    if source.startswith("hf:"):
        from secateur.frameworks.huggingface_folder import load_folder
        from secateur.frameworks.huggingface_model import example_inputs

        model: Any = load_folder(source[3:])
        return model, example_inputs(model, model.config)
    opened = open_model(source, weights=weights, trust_source=trust_source)
    return opened.model, opened.inputs(input_shape)
