"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Annotated

import typer

from secateur.allocate import Budget
from secateur.errors import ConfigError

SourceArgument = Annotated[
    str,
    typer.Argument(
        help="torchvision:NAME, timm:NAME, builtin:NAME, python:pkg.mod:fn, a saved model's folder; some take hf:DIR."
    ),
]
WeightsOption = Annotated[Path | None, typer.Option("--weights", help="A .safetensors file with the source's weights.")]
ShapeOption = Annotated[str | None, typer.Option("--input-shape", help="Shape of one input, such as 1,3,224,224.")]
DataOption = Annotated[str | None, typer.Option("--data", help="digits, npz:FILE, folder:DIR, csv:FILE or text:FILE.")]
TrustOption = Annotated[
    bool, typer.Option("--trust-source", help="Let a saved folder run the python: source that it names.")
]
IgnoreOption = Annotated[
    list[str] | None, typer.Option("--ignore", help="Modules to leave alone, such as 'head.*'; repeatable.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Overwrite a saved model.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def read_budget(texts: list[str]) -> Budget:
    """Read budgets such as `macs=0.5`, several of them in one text or many.

    >>> print(read_budget(["macs=0.5,latency_ms=3"]))
    macs=0.5, latency_ms=3
    """
    known = [field.name for field in fields(Budget)]
    asked: dict[str, float] = {}
    for part in (part for text in texts for part in text.split(",") if part.strip()):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in known or name in asked:
            raise ConfigError(f"{part!r} is no budget. Write NAME=NUMBER, each at most once: {', '.join(known)}.")
        try:
            asked[name] = float(value)
        except ValueError as error:
            raise ConfigError(
                f"{part!r}: {value!r} is no number. Write a fraction kept, macs=0.5, or a unit's: latency_ms=3."
            ) from error
    return Budget(**asked)


def read_shape(text: str) -> tuple[int, ...]:
    """Read a shape.

    >>> read_shape("1,3,224,224")
    (1, 3, 224, 224)
    """
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise ConfigError(f"--input-shape {text!r} is no shape. Write whole numbers from 1 on: 1,3,224,224.")
    return shape
