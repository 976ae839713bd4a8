"""Planning: from a model and a budget to a `Plan`. Trace, repair, score, allocate; the model is read, never changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocate import (
    Allocation,
    AllocationMethod,
    Budget,
    ErrorCurve,
    Space,
    Uniform,
    allocate,
    make_method,
    topology,
)
from secateur.criteria import (
    L2,
    LABELLED,
    Context,
    Criterion,
    CurveCriterion,
    cross_entropy,
    make_criterion,
    measure,
    score_groups,
    to_dict,
)
from secateur.criteria.base import needs_of
from secateur.criteria.samples import inputs_of
from secateur.dims.algebra import Leaf, count, leaves
from secateur.dims.groups import Group
from secateur.errors import ConfigError, PlanError
from secateur.graph import Graph, trace
from secateur.numbers import Binding, unread_numbers
from secateur.plans import AttributeChange, GroupKeep, Plan, expression
from secateur.repair import Repairer, repair
from secateur.specs import to_spec
from secateur.tensors import Inputs

Loss = Callable[[Any, Tensor], Tensor]
Scores = Mapping[str, Tensor | ErrorCurve]
Allocator = Callable[[Graph, Scores], Allocation]
"""From a network and the scores of the groups that may shrink to what these groups keep."""


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How to choose what goes.

    Args:
        criterion: a criterion, its registered name ("l2", "taylor", …), or a function of (group, context).
        method: how counts are chosen: `Uniform()`, `Global()`, or a registered name.
        ignore: fnmatch patterns on fqn, for example "head.*": no tensor of these modules changes.
        seed: for criteria that draw random numbers.

    >>> PruneConfig(criterion="l1").criterion
    'l1'
    """

    criterion: str | Criterion | Callable[[Group, Context], Tensor] = L2()
    method: str | AllocationMethod = Uniform()
    ignore: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.ignore, str):  # type: ignore[unreachable]
            # a lone string would be read letter by letter
            raise ConfigError(
                f"ignore={self.ignore!r} is one string. Pass a tuple of patterns: ignore=({self.ignore!r},)."
            )
        make_criterion(self.criterion)
        make_method(self.method)


@torch.inference_mode(False)  # tensors made in that mode can't take on other shapes
def plan(
    model: nn.Module,
    inputs: Inputs,
    budget: Budget | None,
    config: PruneConfig | None = None,
    *,
    data: Iterable[Any] | None = None,
    loss: Loss = cross_entropy,
    curves: Mapping[str, ErrorCurve] | None = None,
    allocator: Allocator | None = None,
) -> Plan:
    """Choose what to keep of `model` under `budget`. Nothing is changed.

    Args:
        model: the trained network.
        inputs: example inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        budget: what may be kept, as fractions of the dense model or with a unit; None for methods that need none.
        config: criterion, allocation, modules to leave alone, seed.
        data: for criteria that measure on data: batches of (x, y) or dicts with "labels"; x alone where no gradients of
            the loss are needed.
        loss: of (model output, labels); only for criteria that need such gradients.
        curves: by group, error curves in place of the criterion's scores, such as `Sensitivity.curves` gives them. They
            must be on one scale with the scores of any group that is left out.
        allocator: chooses in place of the method, as a budget does that is shared with something else.
    Returns:
        The plan: kept indices, new shapes, numbers to change, costs, and what was left alone with its reason.
    Raises:
        CaptureError: the forward fails on these inputs.
        PlanError: nothing can be pruned; the reasons are listed.
        ConfigError: the criterion needs data, or labels, and none were given.
        GroupError: weights hold NaN or Inf.
    A budget on latency takes times on this machine, once: see `secateur.measure.prediction`.

    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> print(plan(net, torch.zeros(1, 3), Budget(width=0.5)))
    group       kind      width  kept
    ──────────  ────────  ─────  ────
    0 features  features  8 → 4   50%
    parameters 50 → 26 (52.0%), MACs 40 → 20 (50.0%)
    numbers in modules that follow: out_features, in_features
    left alone: 2 (see plan.skipped)
    """
    config = config or PruneConfig()
    graph = trace(model, inputs)
    repairer = repair(model, inputs, graph)
    chosen, _ = choose_groups(graph, config.ignore)
    scores: dict[str, Tensor | ErrorCurve] = {g.name: curves[g.name] for g in chosen if curves and g.name in curves}
    unjudged: dict[str, str] = {}
    if rest := [g for g in chosen if g.name not in scores]:
        found, unjudged = _score(model, rest, make_criterion(config.criterion), data, loss, config.seed)
        scores |= found
    if budget is not None and budget.is_timed:
        graph.latency = _clock(model, inputs, graph, make_method(config.method))
    return plan_graph(repairer, scores, budget, config, unjudged, allocator)


def plan_graph(
    repairer: Repairer,
    scores: Scores,
    budget: Budget | None,
    config: PruneConfig,
    unjudged: Mapping[str, str] | None = None,
    allocator: Allocator | None = None,
) -> Plan:
    """The plan of a network that is traced and repaired, from scores that are known. See `plan`.

    Args:
        repairer: as `repair` returns it. What the counts that are chosen rule out is frozen in its graph.
        scores: of the groups that may be chosen, by name (see `choose_groups`).
        unjudged: why the others of them have none, by name.
        allocator: see `plan`.
    Raises:
        PlanError: nothing is left that can be pruned.
    """
    graph, method, criterion = repairer.graph, make_method(config.method), make_criterion(config.criterion)

    def by_method(graph: Graph, scores: Scores) -> Allocation:
        return allocate(scores, space_of(graph, scores), budget, method)

    allocator = allocator or by_method
    is_settled = False
    while not is_settled:
        chosen, left = choose_groups(graph, config.ignore, unjudged)
        allocation = allocator(graph, {g.name: scores[g.name] for g in chosen})
        is_settled = not repairer.reject({name: len(keep) for name, keep in allocation.keep.items()})
    made_with = {
        "criterion": to_dict(criterion) if type(criterion).name != "function" else {"name": "function"},
        "method": {"name": method.name, **asdict(method)},
        "budget": {} if budget is None else budget.asked(),
        "ignore": list(config.ignore),
        "seed": config.seed,
    }
    made = make_plan(graph, repairer.bindings, allocation, repairer.inputs, skipped=left, made_with=made_with)
    counts = graph.leaf_counts({name: len(keep) for name, keep in allocation.keep.items()})
    if unread := unread_numbers(repairer.model, graph, repairer.bindings, counts):
        note = f"no operator reads these numbers, which equal a width that shrinks; they stay: {', '.join(unread[:8])}"
        made = replace(made, notes=(*made.notes, note))
    return made


def _score(
    model: nn.Module, groups: list[Group], criterion: Criterion, data: Iterable[Any] | None, loss: Loss, seed: int
) -> tuple[dict[str, Tensor | ErrorCurve], dict[str, str]]:
    """Measure what the criterion needs, and score. Returns scores, and why the other groups have none."""
    needs = needs_of(criterion)
    if data is None and (needs or isinstance(criterion, CurveCriterion)):
        what = "labelled data. Pass data=batches of (x, y)" if needs & LABELLED else "data. Pass data=batches of x"
        raise ConfigError(f"Criterion '{criterion.name}' needs {what}.")
    if isinstance(criterion, CurveCriterion):
        found = criterion.curves(model, [inputs_of(batch) for batch in data or ()])
        return {g.name: found.curves[g.name] for g in groups if g.name in found.curves}, {
            g.name: found.skipped.get(g.name, "has no error curve") for g in groups if g.name not in found.curves
        }
    generator = torch.Generator().manual_seed(seed)
    measured = measure(model, groups, needs, data, loss=loss, generator=generator) if data is not None and needs else {}
    return dict(score_groups(groups, criterion, Context.of(model, generator=generator, **measured))), {}


def _clock(
    model: nn.Module, inputs: Inputs, graph: Graph, method: AllocationMethod
) -> Callable[[Mapping[Leaf, int]], float]:
    from secateur.measure.prediction import predict_latency  # timing needs what planning else does without

    return predict_latency(model, inputs, graph, round_to=method.round_to)


def make_plan(
    graph: Graph,
    bindings: Iterable[Binding],
    allocation: Allocation,
    inputs: Inputs,
    *,
    skipped: Iterable[tuple[str, str]] = (),
    made_with: Mapping[str, Any] | None = None,
) -> Plan:
    """Write down what keeping these indices does to every tensor, every bound number and the cost."""
    counts = {name: len(keep) for name, keep in allocation.keep.items()}
    groups = tuple(
        GroupKeep(
            g.name, g.kind, g.size, tuple(allocation.keep.get(g.name, range(g.size))), _shrunk_normalisers(g, counts)
        )
        for g in graph.prunable
    )
    smaller = {g.leaf: counts[g.name] for g in graph.prunable if counts.get(g.name, g.size) < g.size}
    names = {g.leaf: g.name for g in graph.prunable}
    tensors = {}
    for value in graph.trace.tensors.values():
        dims = graph.solution.axes(value)
        if any(leaf in smaller for d in dims for leaf in leaves(d)):
            tensors[value.key] = tuple(expression(d, names) for d in dims)
    for key, first in graph.trace.tied.items():
        if first in tensors:
            tensors[key] = tensors[first]
    return Plan(
        groups=groups,
        tensors=tensors,
        attributes=tuple(_changes(bindings, smaller)),
        inputs=to_spec(inputs),
        cost_before=graph.cost(),
        cost_after=graph.cost(counts),
        skipped=(*skipped, *((g.name, g.frozen_reason) for g in graph.groups if g.frozen_reason is not None)),
        notes=(*graph.notes, *allocation.notes, *([] if graph.latency is None else [str(graph.latency)])),
        config=dict(made_with or {}),
    )


def _shrunk_normalisers(group: Group, counts: Mapping[str, int]) -> tuple[str, ...]:
    return group.normalised_by if counts.get(group.name, group.size) < group.size else ()


def _changes(bindings: Iterable[Binding], smaller: Mapping[Leaf, int]) -> Iterable[AttributeChange]:
    for b in bindings:
        if (n := count(b.dim, smaller)) != b.dim.size:
            yield AttributeChange(b.fqn, b.path, b.dim.size, n)


def choose_groups(
    graph: Graph, ignore: tuple[str, ...], unjudged: Mapping[str, str] | None = None
) -> tuple[list[Group], list[tuple[str, str]]]:
    """Groups that may shrink, and those that stay as they are with the reason: a pattern protects them, they have no
    score, or they are tied to one of these. Raises PlanError, with reasons, where none may."""
    protected = dict(unjudged or {})
    for g in graph.prunable:
        for m in g.members:
            fqn = m.key.rpartition(".")[0]
            pattern = next((p for p in ignore if fnmatch(fqn, p) or fnmatch(m.key, p)), None)
            if pattern is not None:
                protected[g.name] = f"ignore pattern {pattern!r} matches '{m.key}'"
                break
    for g in graph.prunable:
        tied = [name for name in g.tied_to if name in protected]
        if tied and g.name not in protected:
            protected[g.name] = f"keeps the same fraction as '{tied[0]}', which stays whole"
    chosen = [g for g in graph.prunable if g.name not in protected]
    if not chosen:
        reasons = [f"{g.name}: {g.frozen_reason or protected[g.name]}" for g in graph.groups]
        raise PlanError(
            "Nothing in this model can be pruned. " + "; ".join(reasons[:6] or ["it has no axis that could shrink"])
        )
    return chosen, list(protected.items())


def space_of(graph: Graph, names: Collection[str]) -> Space:
    """What may be chosen for these groups of a network."""
    chosen = [g for g in graph.prunable if g.name in names]
    ties = {tuple(sorted({g.name, *g.tied_to})) for g in chosen if g.tied_to}
    return Space(
        sizes={g.name: g.size for g in chosen},
        cost=graph.cost,
        ties=tuple(sorted(tie for tie in ties if all(name in names for name in tie))),
        kinds={g.name: topology(g) for g in chosen},
    )
