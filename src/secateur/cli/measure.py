"""`secateur measure`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

import torch
import typer
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.cli.opening import open_model
from secateur.cli.options import JsonOption, ShapeOption, SourceArgument, TrustOption, WeightsOption, read_shape
from secateur.cli.output import print_json, print_line, print_table
from secateur.graph import trace


def measure(
    source: SourceArgument,
    versus: Annotated[str | None, typer.Option(help="Another model, timed in turn with the first.")] = None,
    input_shape: ShapeOption = None,
    batch_size: Annotated[int, typer.Option(help="Samples per forward, where inputs have a batch axis of 1.")] = 1,
    repeats: Annotated[int, typer.Option(help="Timed forwards.")] = 50,
    threads: Annotated[int | None, typer.Option(help="CPU threads.")] = None,
    weights: WeightsOption = None,
    trust_source: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Measure parameters, MACs, bytes on disk and latency (median and spread), of one model or of two in turn."""
    from secateur.measure import latency, paired_latency

    opened = open_model(source, weights=weights, trust_source=trust_source)
    example = opened.inputs(None if input_shape is None else read_shape(input_shape))
    batch = pytree.tree_map_only(Tensor, lambda t: _batch(t, batch_size), example)
    models = {source: opened.model}
    result: dict[str, Any] = {}
    if versus is None:
        timed = [latency(opened.model, batch, repeats=repeats, n_threads=threads)]
    else:
        other = open_model(versus, trust_source=trust_source).model
        models[versus if versus != source else f"{versus} again"] = other
        pair = paired_latency(opened.model, other, batch, repeats=repeats, n_threads=threads)
        timed = [pair.dense, pair.small]
        result["speedup"] = {"median": pair.speedup, "p25": pair.speedup_p25, "p75": pair.speedup_p75}
    result["models"] = [
        {"source": name, **_counts(model, example), "latency_ms": time.median_ms, "latency": asdict(time)}
        for (name, model), time in zip(models.items(), timed, strict=True)
    ]
    if json:
        print_json(result)
        return
    rows = [
        (m["source"], f"{m['params']:,}", f"{m['macs']:,}", f"{m['size_bytes']:,}", f"{t.median_ms:.3f}", _spread(t))
        for m, t in zip(result["models"], timed, strict=True)
    ]
    print_table(("model", "params", "MACs", "bytes", "latency ms", "25 % to 75 %"), rows)
    t = timed[0]
    print_line(f"per batch of {t.batch_size} on {t.device}, {t.dtype}, {t.n_threads} threads, {t.repeats} runs")
    if speedup := result.get("speedup"):
        print_line(
            f"{versus} is {speedup['median']:.2f}x as fast as {source} [{speedup['p25']:.2f}, {speedup['p75']:.2f}]"
        )


def _batch(tensor: Tensor, batch_size: int) -> Tensor:
    if tensor.ndim == 0 or tensor.shape[0] != 1:
        return tensor
    return torch.cat([tensor] * batch_size)


def _spread(timed: Any) -> str:
    return f"{timed.p25_ms:.3f} to {timed.p75_ms:.3f}"


def _counts(model: nn.Module, example: Any) -> dict[str, Any]:
    from secateur.measure import count_parameters, size_bytes

    graph = trace(model, example)
    counts = {"params": count_parameters(model), "macs": graph.cost().macs, "size_bytes": size_bytes(model)}
    return {**counts, "uncounted": list(graph.uncounted)}
