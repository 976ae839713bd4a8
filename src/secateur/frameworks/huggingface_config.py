"""Which numbers of a `config.json` count which widths, found by rebuilding the model from it: nothing is believed.

All layers get the same widths: alike groups of different layers (one *role*) are tied in the graph. Numbers that equal
a width are bound to it, the model is rebuilt from new numbers, and every parameter's shape, every operator's numbers
and every computed table must be those of the plan. A role that no number stands for, or that changes something else
along (a rotary table, a scale), is frozen with that reason.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from secateur.allocate import Allocation
from secateur.dims.algebra import Leaf, count, leaves
from secateur.dims.groups import Group
from secateur.frameworks.huggingface_fields import (
    Field,
    Width,
    field_options,
    kind_of,
    put_number,
    roles_of,
    spelled_out,
)
from secateur.frameworks.huggingface_rebuild import Mismatch, mismatch, rebuild
from secateur.graph import Graph
from secateur.numbers import Binding
from secateur.planning import make_plan
from secateur.surgery import apply
from secateur.tensors import Inputs, named_tensors

_FRACTIONS = (0.5, 0.75, 0.6, 0.9, 0.55, 0.8, 0.7, 0.65)
_Wrong = list[tuple[str, int]] | None
"""(parameter, axis) that the model of a new config has otherwise than planned; None where it can't be built."""


@dataclass
class Fit:
    """Fields of a config by what they count, for a traced model. `run` finds them and settles the graph."""

    data: dict[str, Any]
    cls: Any
    model: nn.Module
    graph: Graph
    bindings: Sequence[Binding]
    inputs: Inputs
    fields: dict[Field, Width] = field(default_factory=dict)
    whole: dict[str, int] = field(default_factory=dict)  # sizes of all roles, those frozen later included
    probes: list[dict[str, float]] = field(default_factory=list)  # fractions by role that everything is tried with

    @cached_property
    def spelled(self) -> dict[str, Any]:
        """The config with what its class fills in."""
        return spelled_out(self.cls, self.data)

    def run(self) -> None:
        """Tie the roles, bind fields, and freeze what no field explains."""
        _freeze_tables(self.model, self.graph)
        for role, groups in roles_of(self.graph).items():
            self.graph.solution.ties += [(groups[0].leaf, g.leaf, "every layer the same") for g in groups[1:]]
            self.whole[role] = groups[0].size
        self.graph.refresh()
        self.probes = [{role: _FRACTIONS[i % len(_FRACTIONS)] for i, role in enumerate(self.whole)}]
        options = field_options(self.graph, self.spelled)
        kinds = {role: groups[0].kind for role, groups in roles_of(self.graph).items()}
        self.fields = {  # a head's width is usually in a rotary table: that a number equals something else means little
            path: widths[0]
            for path, widths in options.items()
            if (kind := kind_of(path)) and (kind != "head_dim" or kinds[widths[0].roles[0]] == kind)
        }
        self._settle()

    def refine(self, counts: Mapping[Leaf, int]) -> None:
        """Settle again, with counts of an allocation for which the rebuilt model is not the planned one."""
        self.probes.append({role: counts[g[0].leaf] / g[0].size for role, g in roles_of(self.graph).items()})
        self._settle()

    def config_data(self, counts: Mapping[Leaf, int]) -> dict[str, Any]:
        """`config.json` for these widths."""
        data = copy.deepcopy(self.data)
        sizes = {role: count(groups[0].leaf, counts) for role, groups in roles_of(self.graph).items()}
        sizes = {**self.whole, **sizes}
        for path, width in self.fields.items():
            put_number(data, self.spelled, path, width.constant * math.prod(sizes[r] for r in width.roles))
        return data

    def difference(self, counts: Mapping[Leaf, int], small: nn.Module) -> Mismatch | None:
        """Say where the model of the new config is not `small`, the planned one, or None where it is the same."""
        return mismatch(self.cls, self.config_data(counts), small, self.inputs)

    def _settle(self) -> None:
        while (wrong := self._wrong()) is None:
            if not (self._couple(wrong) or self._rebind(wrong) or self._freeze(wrong)):
                return
        self._place_unnamed()
        while wrong := self._wrong():
            if not (self._rebind(wrong) or self._couple(wrong) or self._freeze(wrong)):
                return
        for probe in list(self.probes):
            while (text := self._differs(counts := self._counts(probe))) is not None:
                self._freeze_one(counts, text)

    def _counts(self, probe: Mapping[str, float]) -> dict[Leaf, int]:
        """Widths to try: the fraction of the first role of everything that is tied."""
        free = self.graph.prunable
        by_name = {g.name: g for g in free}
        role_of = {g.name: role for role, groups in roles_of(self.graph).items() for g in groups}
        counts: dict[Leaf, int] = {}
        for g in free:
            if g.leaf not in counts:
                tied = [g.leaf, *(by_name[name].leaf for name in g.tied_to)]
                step = math.gcd(*(leaf.size for leaf in tied))
                n = max(1, int(step * probe.get(role_of[g.name], 1.0) + 1e-9))
                counts.update({leaf: leaf.size // step * n for leaf in tied})
        return counts

    def _wrong(self) -> _Wrong:
        """What is otherwise than planned, over all probes."""
        wrong = []
        for probe in self.probes:
            counts = self._counts(probe)
            try:
                fresh = named_tensors(rebuild(self.cls, self.config_data(counts)))
            except Exception:  # code of Transformers: anything may come out of it
                return None
            for value in self.graph.trace.tensors.values():
                shape = tuple(fresh[value.key].shape) if value.key in fresh else ()
                for axis, dim in enumerate(self.graph.solution.axes(value)):
                    if axis >= len(shape) or shape[axis] != count(dim, counts):
                        wrong.append((value.key, axis))
        return wrong

    def _is_better(self, wrong: _Wrong) -> bool:
        now = self._wrong()
        return now is not None and (wrong is None or len(now) < len(wrong))

    def _rebind(self, wrong: _Wrong) -> bool:
        """Let one field count something else, or nothing, where that leaves fewer wrong shapes."""
        for path, widths in field_options(self.graph, self.spelled).items():
            before = self.fields.get(path)
            for width in (*widths, None):
                if width != before:
                    self._set(path, width)
                    if self._is_better(wrong):
                        return True
            self._set(path, before)
        return False

    def _set(self, path: Field, width: Width | None) -> None:
        self.fields.pop(path, None)
        if width is not None:
            self.fields[path] = width

    def _couple(self, wrong: _Wrong) -> bool:
        """A field that stands for two widths ties them: the hidden size, and 64 × the number of heads."""
        options = field_options(self.graph, self.spelled)
        for path, width in list(self.fields.items()):
            others = [w for w in options.get(path, ()) if w != width] if len(width.roles) == 1 else []
            for other, role in ((w, r) for w in others for r in w.roles if r not in width.roles):
                roles = roles_of(self.graph)
                if width.roles[0] in roles and role in roles:
                    frozen = [g for r in other.roles if r != role for g in roles.get(r, ())]
                    if self._try(roles[width.roles[0]][0], roles[role][0], frozen, path, wrong):
                        return True
        return False

    def _try(self, a: Group, b: Group, frozen: Sequence[Group], path: Field, wrong: _Wrong) -> bool:
        """Tie two roles and freeze others; take that back unless fewer shapes are wrong then."""
        ties = list(self.graph.solution.ties)
        why = f"config.json has one number for both, '{'.'.join(map(str, path))}'"
        _freeze(frozen, why)
        self.graph.solution.ties.append((a.leaf, b.leaf, why))
        self.graph.refresh()
        if self._is_better(wrong):
            return True
        for g in frozen:
            g.leaf.frozen = None
        self.graph.solution.ties = ties
        self.graph.refresh()
        return False

    def _place_unnamed(self) -> None:
        """Tie a role that no field counts to one of its size that a field does count, or freeze it."""
        self._join_alike()
        for role in self._unnamed():
            if role in roles_of(self.graph) and not self._join(role):
                _freeze(roles_of(self.graph).get(role, ()), "no number in config.json stands for it")
                self.graph.refresh()

    def _unnamed(self) -> list[str]:
        """Roles that no field counts, and that are not tied to one that a field counts."""
        roles = roles_of(self.graph)
        named = {role for width in self.fields.values() for role in width.roles}
        tied = {name for role in named & roles.keys() for name in roles[role][0].tied_to}
        return [role for role, groups in roles.items() if role not in named and groups[0].name not in tied]

    def _join_alike(self) -> None:
        """Tie all at once what is of one kind and size: one number counts the heads of encoder and decoder."""
        roles, wrong, ties = roles_of(self.graph), self._wrong(), list(self.graph.solution.ties)
        counted = [roles[w.roles[0]][0] for w in self.fields.values() if len(w.roles) == 1 and w.roles[0] in roles]
        for g in (roles[role][0] for role in self._unnamed()):
            one = next((c for c in counted if (c.kind, c.size) == (g.kind, g.size)), None)
            if one is not None:
                self.graph.solution.ties.append((one.leaf, g.leaf, "config.json has one number for both"))
        self.graph.refresh()
        if not self._is_better(wrong):
            self.graph.solution.ties = ties
            self.graph.refresh()

    def _join(self, role: str) -> bool:
        wrong = self._wrong()
        for path, width in self.fields.items():
            roles = roles_of(self.graph)
            one = width.roles[0] if len(width.roles) == 1 and width.constant == 1 else ""
            if one in roles and role in roles and self.whole[one] == self.whole[role]:
                tied = roles[role][0].name in roles[one][0].tied_to
                if tied or self._try(roles[one][0], roles[role][0], (), path, wrong):
                    return True
        return False

    def _freeze(self, wrong: _Wrong) -> bool:
        """Freeze the first role that a wrong shape mentions, or else the first of all. False: none is left."""
        roles = list(roles_of(self.graph).values())
        dims = [self.graph.solution.axes(self.graph.trace.tensors[key])[axis] for key, axis in wrong or ()]
        blamed = {id(leaf) for dim in dims for leaf in leaves(dim)}
        what = f"'{wrong[0][0]}' has another shape" if wrong else "its class refuses the numbers"
        hit = next((groups for groups in roles if any(id(g.leaf) in blamed for g in groups)), roles[0] if roles else [])
        _freeze(hit, f"a model rebuilt from config.json can't follow: {what}")
        self.graph.refresh()
        return bool(hit)

    def _differs(self, counts: Mapping[Leaf, int]) -> Mismatch | None:
        """`difference` for the first units of each group."""
        if not counts:
            return None
        keep = {g.name: tuple(range(counts.get(g.leaf, g.size))) for g in self.graph.prunable}
        made = make_plan(self.graph, self.bindings, Allocation(keep, {}), self.inputs)
        return self.difference(counts, apply(self.model, made, verify=False))

    def _freeze_one(self, counts: Mapping[Leaf, int], text: Mismatch) -> None:
        """Freeze the roles that differ when they shrink alone (with what is tied to them); if none does, all."""
        found = [(together, why) for together in self._blocks() if (why := self._differs(_only(counts, together)))]
        for together, why in found or [(next(self._blocks()), text)]:
            _freeze(together, f"a model rebuilt from config.json computes something else: {why}")
        self.graph.refresh()

    def _blocks(self) -> Iterator[list[Group]]:
        """Groups that are tied, together."""
        free, seen = self.graph.prunable, set[str]()
        for g in free:
            if g.name not in seen:
                together = [g, *(h for h in free if h.name in g.tied_to)]
                seen |= {h.name for h in together}
                yield together


def _only(counts: Mapping[Leaf, int], groups: Sequence[Group]) -> dict[Leaf, int]:
    return {g.leaf: counts[g.leaf] for g in groups}


def _freeze(groups: Sequence[Group], why: str) -> None:
    for g in groups:
        g.leaf.frozen = g.leaf.frozen or why


def _freeze_tables(model: Any, graph: Graph) -> None:
    """What stands in a table that is computed from the config can't be chosen freely (rotary frequencies)."""
    state = set(model.state_dict())
    for g in graph.prunable:
        outside = [m.key for m in g.members if m.key not in state]
        if outside:
            g.leaf.frozen = f"the table '{outside[0]}' is computed from config.json"
    graph.refresh()
