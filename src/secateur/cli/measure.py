"""`secateur measure`."""

from __future__ import annotations

from typing import Annotated

import torch
import typer
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.cli.opening import open_model
from secateur.cli.options import JsonOption, ShapeOption, SourceArgument, TrustOption, WeightsOption
from secateur.cli.output import print_json, print_line, print_table


def measure(
    source: SourceArgument,
    versus: Annotated[str | None, typer.Option(help="Another model, timed in turn with the first.")] = None,
    runtime: Annotated[
        list[str] | None, typer.Option(help="eager, compile or onnx; repeatable. Default: all three.")
    ] = None,
    input_shape: ShapeOption = None,
    batch_size: Annotated[int, typer.Option(help="Samples per forward, where inputs have a batch axis of 1.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed forwards.")] = 50,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    weights: WeightsOption = None,
    trust_source: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Measure parameters, MACs, bytes and latency (median and spread) in each runtime, of one model or two in turn."""
    from secateur.measure import RUNTIMES, measure_models

    wanted = runtime or list(RUNTIMES)
    for name in wanted:
        RUNTIMES[name]  # an unknown one is refused before the slow steps
    opened = open_model(source, weights=weights, trust_source=trust_source)
    example = opened.inputs(input_shape)
    batch = pytree.tree_map_only(Tensor, lambda t: _batch(t, batch_size), example)
    models = {source: opened.model}
    if versus is not None:
        other = versus if versus != source else f"{versus} again"
        models[other] = open_model(versus, trust_source=trust_source).model
    found = measure_models(models, batch, runtimes=wanted, repeats=repeats, n_threads=threads)
    if json:
        print_json(found.to_dict())
        return
    print_table(
        ("model", "params", "MACs", "bytes", "activation bytes"),
        [
            (name, f"{s.params:,}", f"{s.macs:,}", f"{s.size_bytes:,}", f"{s.activation_bytes:,}")
            for name, s in zip(found.names, found.sizes, strict=True)
        ],
    )
    rows = []
    for name, timed in found.latencies.items():
        details = zip(found.names, timed, found.speedups[name], found.mac_ratios, found.realised(name), strict=True)
        for model, t, speedup, ratio, realised in details:
            spread = f"{t.p25_ms:.3f} to {t.p75_ms:.3f}"
            faster = f"{speedup.median:.2f} [{speedup.p25:.2f}, {speedup.p75:.2f}]"
            rows.append((name, model, f"{t.median_ms:.3f}", spread, faster, f"{ratio:.2f}", f"{realised:.2f}"))
    print_table(("runtime", "model", "latency ms", "25 % to 75 %", "speedup", "MAC ratio", "realised"), rows, n_text=2)
    for timed in found.latencies.values():
        print_line(timed[0].setting())
    for name, reason in found.not_run.items():
        print_line(f"{name} was not run: {reason}")
    for warning in found.warnings:
        print_line(f"warning: {warning}")


def _batch(tensor: Tensor, batch_size: int) -> Tensor:
    if tensor.ndim == 0 or tensor.shape[0] != 1:
        return tensor
    return torch.cat([tensor] * batch_size)
