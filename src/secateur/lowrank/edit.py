"""The edit that puts chains in place of layers, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from secateur.edits import EDITS
from secateur.errors import PlanError, RegistryError
from secateur.lowrank.forms import FORMS, Rank
from secateur.lowrank.layers import Factored, fault_of
from secateur.surgery import copy_model, replace_modules_
from secateur.tensors import modules_of


@EDITS.register("factorize")
@dataclass(frozen=True)
class Factors:
    """Layers as chains: a form and a rank by fqn.

    >>> edit = Factors({"0": ("svd", (2,))})
    >>> edit.replay(nn.Sequential(nn.Linear(8, 6)))[0]
    Factored(
      (0): Linear(in_features=8, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=6, bias=True)
    )
    """

    kind: ClassVar[str] = "factorize"
    layers: dict[str, tuple[str, Rank]]

    def replay(self, model: nn.Module) -> nn.Module:
        """Put chains of zeros into a copy."""
        made = copy_model(model)
        chains: dict[str, nn.Module] = {}
        for fqn, (form, rank) in self.layers.items():
            try:
                layer = made.get_submodule(fqn)
            except AttributeError as error:
                raise PlanError(f"The model has no layer '{fqn}' to factor ({error}).") from error
            if (fault := fault_of(layer)) != "":
                raise PlanError(f"'{fqn}' can't be factored: {fault or f'{type(layer).__name__} is no layer for it'}.")
            chains[fqn] = Factored.blank(layer, form, rank)
        replace_modules_(made, chains)
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {"layers": {fqn: {"form": form, "rank": list(rank)} for fqn, (form, rank) in self.layers.items()}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        layers = {}
        for fqn, item in dict(data["layers"]).items():
            if set(item) != {"form", "rank"} or item["form"] not in FORMS:
                raise RegistryError(f"'{fqn}' is factored as {item!r}, which is none of {', '.join(sorted(FORMS))}")
            if not all(type(r) is int and r > 0 for r in item["rank"]):
                raise ValueError(f"'{fqn}' has rank {item['rank']!r}")
            layers[str(fqn)] = (str(item["form"]), tuple(item["rank"]))
        return cls(layers)


def merge(model: nn.Module) -> nn.Module:
    """A copy with every chain as one layer again: the same function up to rounding, of the rank that it has.

    >>> chain = Factors({"0": ("svd", (2,))}).replay(nn.Sequential(nn.Linear(8, 6)))
    >>> merge(chain)
    Sequential(
      (0): Linear(in_features=8, out_features=6, bias=True)
    )
    """
    made = copy_model(model)
    replace_modules_(made, {fqn: m.merged() for fqn, m in modules_of(made) if isinstance(m, Factored)})
    return made
