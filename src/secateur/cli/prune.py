"""`secateur prune`."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from secateur.allocate import ALLOCATIONS, Budget, make_method
from secateur.cli.opening import Opened, open_calibration, open_data, open_model
from secateur.cli.options import (
    DataOption,
    ForceOption,
    IgnoreOption,
    JsonOption,
    ShapeOption,
    SourceArgument,
    TrustOption,
    WeightsOption,
    read_budget,
)
from secateur.cli.output import print_json, print_line, print_table
from secateur.criteria import CRITERIA
from secateur.edits import Prune
from secateur.errors import ConfigError, VerifyError
from secateur.files import check_target, save
from secateur.planning import PruneConfig, plan
from secateur.plans import Plan
from secateur.surgery import apply
from secateur.verification import VerifyReport, verify

log = logging.getLogger("secateur")


def prune(
    source: SourceArgument,
    output: Annotated[Path, typer.Option(help="Folder for the smaller model.")],
    budget: Annotated[
        list[str] | None,
        typer.Option(
            help="What may be kept: macs=0.5, size_bytes=5e6, latency=0.6; repeatable. Most methods take one."
        ),
    ] = None,
    criterion: Annotated[
        str, typer.Option(help=f"What scores units, settings after '?': {', '.join(sorted(CRITERIA))}.")
    ] = "l2",
    method: Annotated[
        str, typer.Option(help=f"What chooses counts, as in 'top_n?n=16': {', '.join(sorted(ALLOCATIONS))}.")
    ] = "uniform",
    ignore: IgnoreOption = None,
    weights: WeightsOption = None,
    data: DataOption = None,
    input_shape: ShapeOption = None,
    seed: Annotated[int, typer.Option(help="Of fresh weights, the data's cut, and random scores.")] = 0,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="hf: only. Each layer chooses its widths.")] = False,
    trust_source: TrustOption = False,
    force: ForceOption = False,
    json: JsonOption = False,
) -> None:
    """Prune a model, prove that the result is right, and save it. Nothing is trained.

    hf:FOLDER is a Hugging Face checkpoint; it is cut shard by shard, and the result is one.
    """
    asked = read_budget(budget) if budget else None
    config = PruneConfig(criterion=criterion, method=method, ignore=tuple(ignore or ()), seed=seed)
    if source.startswith("hf:"):
        if weights is not None or data is not None or input_shape is not None or asked is None:
            raise ConfigError(
                "An hf: folder has its weights and inputs. Leave out --weights, --data and --input-shape,"
                " and give a --budget."
            )
        _prune_folder(source[3:], asked, output, config, per_layer=per_layer, force=force, is_json=json)
        return
    check_target(output.absolute(), overwrite=force)
    opened = open_model(source, weights=weights, seed=seed, trust_source=trust_source)
    splits = None if data is None else open_data(data, seed, opened)
    inputs = opened.inputs(input_shape, splits)
    log.info("planning")
    made = plan(opened.model, inputs, asked, config, data=open_calibration(splits, seed))
    log.info("applying and verifying")
    small = apply(opened.model, made, verify=False)
    proof = verify(opened.model, small, made)
    if not proof.is_ok:
        raise VerifyError(f"The pruned model fails its proof, and nothing was saved.\n{proof}")
    whole = opened.edits.then(Prune(made))
    save(small, output, plan=whole, source=opened.source, overwrite=force)
    _print(opened, made, proof, output, is_json=json)


def _prune_folder(
    folder: str, asked: Budget, output: Path, config: PruneConfig, *, per_layer: bool, force: bool, is_json: bool
) -> None:
    from secateur.frameworks.huggingface_folder import prune_folder

    log.info("planning without weights, then cutting shard by shard")
    method = make_method(config.method)
    if method.round_to == 1:  # not asked for
        config = replace(config, method=replace(method, round_to=8))
    report = prune_folder(folder, output, asked, config, per_layer=per_layer, overwrite=force)
    if is_json:
        print_json(report.to_dict())
    else:
        print_line(str(report))


def _print(opened: Opened, made: Plan, proof: VerifyReport, output: Path, *, is_json: bool) -> None:
    before, after = made.cost_before, made.cost_after
    if is_json:
        print_json(
            {
                "source": opened.name,
                "folder": str(output),
                "params": {"before": before.params, "after": after.params},
                "macs": {"before": before.macs, "after": after.macs},
                "widths": {g.name: {"before": g.size, "after": len(g.keep)} for g in made.groups},
                "skipped": [list(pair) for pair in made.skipped],
                "notes": list(made.notes),
                "verify": str(proof),
                "max_difference": proof.max_difference,
            }
        )
        return
    rows = [
        (g.name, g.kind, str(g.size), str(len(g.keep)), f"{len(g.keep) / g.size:.0%}")
        for g in made.groups
        if len(g.keep) < g.size
    ]
    print_table(("group", "kind", "width", "kept", "part"), rows, n_text=2)
    print_line(f"parameters {before.params:,} → {after.params:,}, MACs {before.macs:,} → {after.macs:,}")
    print_line(str(proof))
    for note in made.notes:
        print_line(f"note: {note}")
    print_line(f"{len(made.skipped)} groups left alone; reasons are in plan.json, or with --json")
    print_line(f"saved in {output}")
