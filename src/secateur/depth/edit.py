"""The edit that removes blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from torch import nn

from secateur.depth.blocks import Identity
from secateur.edits import EDITS
from secateur.errors import PlanError
from secateur.surgery import copy_model, replace_modules_, set_number

Numbers = tuple[tuple[str, str, Any], ...]
"""What follows: (fqn of a module, path from there, new value)."""


@EDITS.register("drop")
@dataclass(frozen=True)
class Removal:
    """Blocks that are gone.

    Attributes:
        identities: blocks that became identities, by fqn, with the length of the tuple that they return (0: a tensor).
        lists: blocks that were taken out of a `ModuleList`, as indices by its fqn.
        numbers: attributes that follow the new places and counts, such as `layer_idx` and `config.num_hidden_layers`.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> Removal({"1": 0}).replay(net)[1]
    Identity(n_outputs=0)
    """

    kind: ClassVar[str] = "drop"
    identities: dict[str, int] = field(default_factory=dict)
    lists: dict[str, tuple[int, ...]] = field(default_factory=dict)
    numbers: Numbers = ()

    def replay(self, model: nn.Module) -> nn.Module:
        """Remove them from a copy."""
        made = copy_model(model)
        for fqn, n_outputs in self.identities.items():
            replace_modules_(made, {fqn: Identity.of(_module(made, fqn), n_outputs)})
        for fqn, gone in sorted(self.lists.items(), key=lambda item: -item[0].count(".")):  # inner lists first
            members = _module(made, fqn)
            if not isinstance(members, nn.ModuleList) or not set(gone) < set(range(len(members))):
                raise PlanError(f"'{fqn}' is no ModuleList with more than the blocks {list(gone)} to remove.")
            kept = [block for i, block in enumerate(members) if i not in gone]
            replace_modules_(made, {fqn: nn.ModuleList(kept).train(members.training)})
        for fqn, path, value in self.numbers:
            set_number(made, fqn, path, value)
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        lists = {fqn: list(gone) for fqn, gone in self.lists.items()}
        return {"identities": self.identities, "lists": lists, "numbers": [list(number) for number in self.numbers]}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        identities = {str(fqn): int(n) for fqn, n in dict(data["identities"]).items()}
        lists = {str(fqn): tuple(map(int, gone)) for fqn, gone in dict(data["lists"]).items()}
        return cls(identities, lists, tuple((str(fqn), str(path), value) for fqn, path, value in data["numbers"]))


def _module(model: nn.Module, fqn: str) -> nn.Module:
    try:
        return model.get_submodule(fqn)
    except AttributeError as error:
        raise PlanError(f"The model has no block '{fqn}' ({error}). The edit was made for another one.") from error
