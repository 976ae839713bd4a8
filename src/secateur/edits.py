"""Edits: what each step did to a model's structure, as plain data that can be done again to the untouched architecture.

A recipe's steps (prune, drop, factorize, quantize, …) end in an edit each; one file lists them in order, and loading
replays them. An edit holds no weights: those are in the weights file.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import nn

from secateur.errors import PlanError, RegistryError
from secateur.plans import Plan, compose
from secateur.registry import Registry
from secateur.surgery import apply

SCHEMA = 1
KIND = "secateur.edits"


@runtime_checkable
class Edit(Protocol):
    """One change of structure. Frozen, comparable, JSON."""

    kind: ClassVar[str]

    def replay(self, model: nn.Module) -> nn.Module:
        """Return a changed copy; the model is untouched. Tensors that are new may hold any values.

        Raises:
            PlanError: the edit does not fit the model.
        """
        ...

    def to_data(self) -> dict[str, Any]:
        """Plain data for JSON, without the kind."""
        ...

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`, strictly: ValueError, TypeError or KeyError for anything else."""
        ...


EDITS = Registry[str, type[Edit]]("edit")


@EDITS.register("prune")
@dataclass(frozen=True)
class Prune:
    """Narrower widths: a `Plan`."""

    kind: ClassVar[str] = "prune"
    plan: Plan

    def replay(self, model: nn.Module) -> nn.Module:
        """Apply the plan, unproven."""
        return apply(model, self.plan, verify=False)

    def to_data(self) -> dict[str, Any]:
        """The plan's own JSON."""
        data: dict[str, Any] = json.loads(self.plan.to_json())
        return {"plan": data}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        return cls(Plan.from_json(json.dumps(data["plan"])))


@dataclass(frozen=True)
class Edits:
    """Edits in order, from the dense architecture to the smaller one.

    >>> edits = Edits()
    >>> Edits.from_json(edits.to_json()) == edits, edits.replay(nn.Linear(1, 1))
    (True, Linear(in_features=1, out_features=1, bias=True))
    """

    steps: tuple[Edit, ...] = ()
    inputs: Any = None  # example inputs of the model, as `secateur.specs` writes them

    @classmethod
    def of(cls, plan: Plan | Edits) -> Edits:
        """A plan as the one edit of a list; a list stays what it is."""
        return plan if isinstance(plan, Edits) else Edits((Prune(plan),), plan.inputs)

    def then(self, edit: Edit | Edits) -> Edits:
        """These edits and one more, or several; two plans in a row become one."""
        if isinstance(edit, Edits):
            return functools.reduce(Edits.then, edit.steps, self)
        last = self.steps[-1] if self.steps else None
        inputs = self.inputs if not isinstance(edit, Prune) or self.inputs is not None else edit.plan.inputs
        if isinstance(last, Prune) and isinstance(edit, Prune):
            return Edits((*self.steps[:-1], Prune(compose(last.plan, edit.plan))), inputs)
        return Edits((*self.steps, edit), inputs)

    def replay(self, model: nn.Module) -> nn.Module:
        """Return a copy of the dense model with every edit done to it, in order."""
        for edit in self.steps:
            model = edit.replay(model)
        return model

    def to_json(self) -> str:
        """One JSON text; `from_json` of it equals these edits."""
        if len(self.steps) == 1 and isinstance(only := self.steps[0], Prune) and self == Edits.of(only.plan):
            return only.plan.to_json()  # a plan alone is a file of its own
        steps = [{"edit": edit.kind, **edit.to_data()} for edit in self.steps]
        data = {"kind": KIND, "schema": SCHEMA, "inputs": self.inputs, "edits": steps}
        return json.dumps(data, indent=1, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Edits:
        """Read edits back. Raises PlanError for anything that is not exactly a list of them."""
        import secateur.steps  # noqa: F401  registers the edits of all steps, which import this module

        try:
            data = json.loads(text)
            if data.get("kind") == "secateur.plan":
                return cls.of(Plan.from_json(text))
            if set(data) != {"kind", "schema", "inputs", "edits"} or data["kind"] != KIND:
                raise ValueError("the fields are not those of a list of edits")
            if data["schema"] != SCHEMA:
                raise ValueError(f"schema {data['schema']!r} is not {SCHEMA}")
            steps = []
            for item in data["edits"]:
                rest = {key: value for key, value in item.items() if key != "edit"}
                steps.append(EDITS[item["edit"]].from_data(rest))
            return cls(tuple(steps), data["inputs"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, RegistryError, PlanError) as error:
            raise PlanError(f"This is not a list of edits of schema {SCHEMA}: {error}.") from error
