"""What each tool does with one network: half of every width goes. Each is called as its own README says, with no hints.

A tool's function gives the pruned network and fills the row as it goes, so that a row tells how far the tool came.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

Row = dict[str, Any]
Tool = Callable[[nn.Module, Any, list[nn.Module], Row], nn.Module]


@contextmanager
def phase(row: Row, name: str) -> Iterator[None]:
    """Time a phase: seconds on the clock, and seconds of this process (one thread, so other programs don't count)."""
    clock, cpu = time.perf_counter(), time.process_time()
    try:
        yield
    finally:
        row["seconds"][name] = round(time.perf_counter() - clock, 3)
        row["cpu_seconds"][name] = round(time.process_time() - cpu, 3)


def secateur(model: nn.Module, inputs: Any, outputs: list[nn.Module], row: Row) -> nn.Module:
    """Plan, apply and verify. `outputs` is not used: Secateur finds what is the model's output."""
    import secateur as tool

    with phase(row, "trace"):  # `plan` traces again: this one says what a first call costs
        graph = tool.trace(model, inputs)
    row["captured"] = True
    row["unknown"] = sorted({str(op.target) for op in graph.solution.unknown})
    with phase(row, "plan"):
        plan = tool.plan(model, inputs, tool.Budget(width=0.5), tool.PruneConfig(criterion="random"))
    row["groups"] = len(plan.groups) + len(plan.skipped)
    row["frozen"] = dict(Counter(_reason(why) for _, why in plan.skipped).most_common())
    with phase(row, "apply"):
        small = tool.apply(model, plan, verify=False)
    row["pruned"] = not plan.is_empty
    with phase(row, "verify"):
        report = tool.verify(model, small, plan, inputs)
    row["verified"], row["difference"] = report.is_ok, report.max_difference
    row["problems"] = [p[:300] for p in report.problems[:3]]
    row["renormalised"] = len(report.renormalised)
    return small


def _reason(why: str) -> str:
    """Reasons that name one place each are counted together; one that has no explanation stays whole."""
    return why[:300] if why.startswith("no number or equation") else why.split(":")[0].split(" (")[0][:80]


def torch_pruning(model: nn.Module, inputs: Any, outputs: list[nn.Module], row: Row) -> nn.Module:
    """The README's high-level pruner at `pruning_ratio=0.5`, the layers that give the model's output ignored."""
    import torch_pruning as tool

    with phase(row, "trace"):
        pruner = tool.pruner.BasePruner(
            model,
            inputs,
            importance=tool.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=outputs,
        )
    row["captured"] = True
    before = sum(p.numel() for p in model.parameters())
    with phase(row, "apply"):
        pruner.step()
    row["pruned"] = sum(p.numel() for p in model.parameters()) < before
    return model


def torch_kirigami(model: nn.Module, inputs: Any, outputs: list[nn.Module], row: Row) -> nn.Module:
    """The README's automatic selection, half of the channels of every candidate."""
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner

    call = {"args": (), "kwargs": inputs} if isinstance(inputs, dict) else {"args": _args(inputs)}
    with phase(row, "trace"):
        graph = DependencyGraph.build(model, **call)
    row["captured"] = True
    before = sum(p.numel() for p in model.parameters())
    with phase(row, "apply"):
        pruner = Pruner(model, graph=graph)
        candidates = pruner.discover_candidates()
        small, _ = pruner.prune(candidates, budget=ChannelRatio(0.5), strategy=Greedy(GroupMagnitude(p=2)))
    row["pruned"] = sum(p.numel() for p in small.parameters()) < before
    return small


def _args(inputs: Any) -> tuple[Any, ...]:
    return tuple(inputs) if isinstance(inputs, tuple | list) else (inputs,)


TOOLS: dict[str, Tool] = {"secateur": secateur, "torch-pruning": torch_pruning, "torch-kirigami": torch_kirigami}
