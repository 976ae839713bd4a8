"""The plan: what to keep of which group, what that does to each tensor and attribute, what it costs. Pure data.

A plan is JSON: it can be read, diffed, saved, composed, and replayed on another checkpoint of the same architecture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from secateur.dims.algebra import Cat, Dim, Leaf, cat, count, find, kept, new, prod
from secateur.dims.cost import Cost
from secateur.errors import PlanError
from secateur.tables import text_table

SCHEMA = 1

_WIDEST = 1 << 24
"""No axis that could be pruned is wider; a hostile file must not make a list that fills memory."""

Expr = int | str | dict[str, Any]
"""An axis in JSON: a fixed size, a group's name, {"cat": [...]}, {"prod": [...]}, or {"of": size, "keep": [...]}."""


@dataclass(frozen=True)
class GroupKeep:
    """A group's width before, and the sorted original indices that stay."""

    name: str
    kind: str
    size: int
    keep: tuple[int, ...]
    normalised_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttributeChange:
    """A number in the user's module that follows a width: `path` is `num_heads`, `sizes[1]` or `config.hidden_size`."""

    fqn: str
    path: str
    old: int
    new: int


@dataclass(frozen=True)
class Plan:
    """What `plan` returns and `apply` carries out.

    Attributes:
        groups: every group that may shrink, kept indices included.
        tensors: for each tensor that changes, its axes as expressions over group names.
        attributes: numbers in modules that change along.
        inputs: the example inputs, tensors as {"shape", "dtype"} (see `secateur.specs`).
        cost_before, cost_after: parameters and MACs.
        skipped: what was left alone, as (name, reason).
        notes: where the budget is not met exactly, and why.
        config: what the plan was made with (criterion, allocation, budget, seed).
    """

    groups: tuple[GroupKeep, ...]
    tensors: dict[str, tuple[Expr, ...]]
    attributes: tuple[AttributeChange, ...]
    inputs: Any
    cost_before: Cost
    cost_after: Cost
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def is_empty(self) -> bool:
        """True where nothing is removed."""
        return not self.tensors

    @cached_property
    def _leaves(self) -> dict[str, Leaf]:
        return {g.name: Leaf(g.size) for g in self.groups}

    @cached_property
    def _solved(self) -> tuple[dict[str, tuple[Dim, ...]], dict[Leaf, Tensor]]:
        """Axes of every changed tensor as dims, and the indices that stay of each of their leaves."""
        keep = {self._leaves[g.name]: torch.tensor(g.keep, dtype=torch.long) for g in self.groups}

        def dim(e: Expr) -> Dim:
            if isinstance(e, int):
                return new(e)
            if isinstance(e, str):
                return self._leaves[e]
            if "keep" in e:
                leaf = Leaf(e["of"])
                keep[leaf] = torch.tensor(from_runs(e["keep"]), dtype=torch.long)
                return leaf
            return cat(map(dim, e["cat"])) if "cat" in e else prod(map(dim, e["prod"]))

        return {key: tuple(map(dim, axes)) for key, axes in self.tensors.items()}, keep

    def keep(self, key: str) -> list[Tensor | None]:
        """For each axis of a tensor that changes, the indices that stay; None where the axis is whole.

        >>> axes = {"w": ({"prod": ["g", 2]}, 4)}
        >>> plan = Plan((GroupKeep("g", "heads", 3, (0, 2)),), axes, (), None, Cost(0, 0), Cost(0, 0))
        >>> plan.keep("w")
        [tensor([0, 1, 4, 5]), None]
        >>> plan.shape_before("w"), plan.shape_after("w")
        ((6, 4), (4, 4))
        """
        dims, keep = self._solved
        indices = [kept(d, keep) for d in dims[key]]
        return [None if len(i) == d.size else i for i, d in zip(indices, dims[key], strict=True)]

    def shape_before(self, key: str) -> tuple[int, ...]:
        """Shape of a changed tensor in the dense model."""
        return tuple(d.size for d in self._solved[0][key])

    def shape_after(self, key: str) -> tuple[int, ...]:
        """Shape of a changed tensor in the pruned model."""
        dims, keep = self._solved
        counts = {leaf: len(i) for leaf, i in keep.items()}
        return tuple(count(d, counts) for d in dims[key])

    def to_json(self) -> str:
        """One JSON text; `Plan.from_json` of it equals this plan."""
        data = asdict(self)
        data["groups"] = [{**asdict(g), "keep": to_runs(g.keep)} for g in self.groups]
        return json.dumps({"schema": SCHEMA, "kind": "secateur.plan", **data}, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back. Raises PlanError for anything that is not exactly one, naming what is wrong."""
        try:
            data = json.loads(text)
            return _from_dict(data)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise PlanError(
                f"This is not a plan of schema {SCHEMA}: {type(error).__name__}: {error}."
                " Make it with secateur.plan and to_json."
            ) from error

    def __str__(self) -> str:
        rows = [
            (g.name, g.kind, f"{g.size} → {len(g.keep)}", f"{len(g.keep) / g.size:.0%}")
            for g in self.groups
            if len(g.keep) < g.size
        ]
        before, after = self.cost_before, self.cost_after
        lines = [text_table(("group", "kind", "width", "kept"), rows)] if rows else ["nothing is removed"]
        lines += [
            f"parameters {before.params:,} → {after.params:,} ({_part(after.params, before.params)}),"
            f" MACs {before.macs:,} → {after.macs:,} ({_part(after.macs, before.macs)})"
        ]
        if self.attributes:
            paths = dict.fromkeys(a.path for a in self.attributes)
            lines.append(f"numbers in modules that follow: {', '.join(paths)}")
        lines += [f"note: {n}" for n in self.notes]
        lines += [f"left alone: {len(self.skipped)} (see plan.skipped)"] if self.skipped else []
        return "\n".join(lines)


def _part(after: int, before: int) -> str:
    return f"{after / before:.1%}" if before else "–"


def to_runs(keep: tuple[int, ...]) -> list[list[int]]:
    """Sorted indices as half-open runs.

    >>> to_runs((0, 1, 2, 5, 7, 8))
    [[0, 3], [5, 6], [7, 9]]
    """
    runs: list[list[int]] = []
    for i in keep:
        if runs and runs[-1][1] == i:
            runs[-1][1] = i + 1
        else:
            runs.append([i, i + 1])
    return runs


def from_runs(runs: list[list[int]]) -> tuple[int, ...]:
    """Undo `to_runs`. Raises ValueError where runs are empty, unsorted or overlap."""
    last = 0
    for start, stop in runs:
        if not last <= start < stop <= _WIDEST:
            raise ValueError(f"kept indices {runs} are not sorted runs")
        last = stop
    return tuple(i for start, stop in runs for i in range(start, stop))


def expression(dim: Dim, names: Mapping[Leaf, str]) -> Expr:
    """A dim as JSON; leaves without a name are their size."""
    dim = find(dim)
    if isinstance(dim, Leaf):
        return names.get(dim, dim.size)
    if isinstance(dim, Cat):
        parts = [expression(p, names) for p in dim.parts]
        return {"cat": parts} if any(map(_mentions, parts)) else dim.size
    factors = [expression(f, names) for f in dim.factors]  # type: ignore[attr-defined]
    return {"prod": factors} if any(map(_mentions, factors)) else dim.size


def _compose_axis(first: Tensor | None, second: Tensor | None, size: int) -> Tensor:
    whole = torch.arange(size)
    once = whole if first is None else first
    return once if second is None else once[second]


def compose(first: Plan, second: Plan) -> Plan:
    """The one plan that does to the dense model what `first`, then `second` (made on the pruned model) do.

    Groups are matched by name. An axis that the second plan sees as made of other groups keeps its own index list.
    Raises:
        PlanError: the second plan was not made on what the first one leaves.
    """
    later = {g.name: g for g in second.groups}
    groups = []
    for g in first.groups:
        match = later.pop(g.name, None)
        fits = match is not None and match.size == len(g.keep)
        groups.append(replace(g, keep=tuple(g.keep[i] for i in match.keep)) if match and fits else g)
    groups += later.values()
    whole = replace(first, groups=tuple(groups), tensors={**second.tensors, **first.tensors})
    tensors: dict[str, tuple[Expr, ...]] = {}
    for key in whole.tensors:
        one = first.keep(key) if key in first.tensors else [None] * len(second.tensors[key])
        two = second.keep(key) if key in second.tensors else [None] * len(one)
        before = (first if key in first.tensors else second).shape_before(key)
        if key in first.tensors and key in second.tensors and first.shape_after(key) != second.shape_before(key):
            raise PlanError(
                f"The second plan finds '{key}' as {second.shape_before(key)}, the first leaves it as"
                f" {first.shape_after(key)}. Make the second plan on the model that the first one gave."
            )
        wanted = [_compose_axis(a, b, n) for a, b, n in zip(one, two, before, strict=True)]
        by_name = whole.keep(key)
        tensors[key] = tuple(
            e if torch.equal(w, torch.arange(n) if k is None else k) else {"of": n, "keep": to_runs(tuple(w.tolist()))}
            for e, w, k, n in zip(whole.tensors[key], wanted, by_name, before, strict=True)
        )
    return replace(
        first,
        groups=tuple(groups),
        tensors=tensors,
        attributes=_compose_attributes(first.attributes, second.attributes),
        cost_after=second.cost_after,
        skipped=second.skipped,
        notes=(*first.notes, *second.notes),
        config={"steps": [*first.config.get("steps", [first.config]), *second.config.get("steps", [second.config])]},
    )


def _compose_attributes(
    first: tuple[AttributeChange, ...], second: tuple[AttributeChange, ...]
) -> tuple[AttributeChange, ...]:
    changes = {(a.fqn, a.path): a for a in first}
    for a in second:
        old = changes.get((a.fqn, a.path), a).old
        changes[a.fqn, a.path] = replace(a, old=old)
    return tuple(a for a in changes.values() if a.old != a.new)


def _mentions(e: Expr) -> bool:
    """True where an expression names a group, so that it may shrink."""
    return not isinstance(e, int)


def _from_dict(data: dict[str, Any]) -> Plan:
    if data.pop("kind", None) != "secateur.plan" or data.pop("schema", None) != SCHEMA:
        raise ValueError("the fields 'kind' and 'schema' are not those of a plan")
    known = {f.name for f in fields(Plan)}
    if data.keys() != known:
        raise ValueError(f"fields {sorted(data.keys() ^ known)} are missing or unknown")
    groups = tuple(
        GroupKeep(**{**g, "keep": from_runs(g["keep"]), "normalised_by": tuple(g["normalised_by"])})
        for g in data["groups"]
    )
    if bad := [g.name for g in groups if not g.keep or g.keep[-1] >= g.size]:
        raise ValueError(f"group {bad[0]!r} keeps nothing, or indices beyond its width")
    plan = Plan(
        groups=groups,
        tensors={key: tuple(axes) for key, axes in data["tensors"].items()},
        attributes=tuple(AttributeChange(**a) for a in data["attributes"]),
        inputs=data["inputs"],
        cost_before=Cost(**data["cost_before"]),
        cost_after=Cost(**data["cost_after"]),
        skipped=tuple((name, reason) for name, reason in data["skipped"]),
        notes=tuple(data["notes"]),
        config=dict(data["config"]),
    )
    for key in plan.tensors:  # an expression that is no expression fails here, not later
        plan.shape_after(key)
    return plan
