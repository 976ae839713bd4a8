"""`secateur inspect`."""

from __future__ import annotations

from typing import Any

from secateur.cli.opening import open_model
from secateur.cli.options import JsonOption, ShapeOption, SourceArgument, TrustOption, WeightsOption
from secateur.cli.output import print_json, print_line, print_table
from secateur.errors import ConfigError
from secateur.graph import Graph, trace


def inspect(
    source: SourceArgument,
    input_shape: ShapeOption = None,
    weights: WeightsOption = None,
    trust_source: TrustOption = False,
    json: JsonOption = False,
) -> None:
    """Show what must shrink together in a model, what is frozen and why, and what it costs.

    Of hf:FOLDER, a Hugging Face checkpoint, no weight is read.
    """
    if source.startswith("hf:"):
        graph = _trace_folder(source[3:], has_options=weights is not None or input_shape is not None)
    else:
        opened = open_model(source, weights=weights, trust_source=trust_source)
        graph = trace(opened.model, opened.inputs(input_shape))
    if json:
        print_json(_to_dict(graph))
        return
    rows = [
        (g.name, g.kind, g.frozen_reason or "prunable", f"{g.size:,}", str(len({m.key for m in g.members})))
        for g in graph.groups
    ]
    print_table(("group", "kind", "state", "width", "tensors"), rows, n_text=3)
    cost = graph.cost()
    shapes = ", ".join(str(list(v.shape)) for v in graph.trace.inputs)
    print_line(
        f"{len(graph.prunable)} of {len(graph.groups)} groups are prunable; {cost.params:,} parameters,"
        f" {cost.macs:,} MACs on inputs {shapes}"
    )
    if graph.uncounted:
        print_line("uncounted operators: " + "; ".join(graph.uncounted))
    for note in graph.notes:
        print_line(f"note: {note}")


def _trace_folder(folder: str, *, has_options: bool) -> Graph:
    if has_options:
        raise ConfigError("An hf: folder has its weights and inputs. Leave out --weights and --input-shape.")
    from secateur.frameworks.huggingface_folder import build_folder
    from secateur.frameworks.huggingface_model import example_inputs

    model: Any = build_folder(folder)
    return trace(model, example_inputs(model, model.config))


def _to_dict(graph: Graph) -> dict[str, object]:
    cost = graph.cost()
    return {
        "groups": [
            {
                "name": g.name,
                "kind": g.kind,
                "width": g.size,
                "frozen_reason": g.frozen_reason,
                "tied_to": list(g.tied_to),
                "tensors": sorted({m.key for m in g.members}),
            }
            for g in graph.groups
        ],
        "inputs": [list(v.shape) for v in graph.trace.inputs],
        "params": cost.params,
        "macs": cost.macs,
        "uncounted": list(graph.uncounted),
        "notes": list(graph.notes),
    }
