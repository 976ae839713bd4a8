"""The edit that puts codings on weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from torch import nn

from secateur.coding.attach import attach_, codable
from secateur.coding.base import CODINGS, Coding
from secateur.edits import EDITS
from secateur.errors import PlanError
from secateur.surgery import copy_model


@EDITS.register("code")
@dataclass(frozen=True)
class Code:
    """Codings by weight: each is (kind, settings)."""

    kind: ClassVar[str] = "code"
    weights: dict[str, tuple[str, dict[str, Any]]]

    @classmethod
    def of(cls, codings: Mapping[str, Coding]) -> Self:
        """The edit that put these codings on these weights."""
        return cls({key: (coding.kind, coding.settings()) for key, coding in codings.items()})

    def replay(self, model: nn.Module) -> nn.Module:
        """Put blank codings on a copy."""
        made = copy_model(model)
        weights, skipped = codable(made, min_dims=1)
        for key, (kind, settings) in self.weights.items():
            if key not in weights:
                reason = dict(skipped).get(key, "the model has no such weight")
                raise PlanError(f"'{key}' can't be coded: {reason}. The edit was made for another architecture.")
            attach_(made, key, CODINGS[kind].blank(weights[key], settings))
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {"weights": {key: {"coding": kind, **settings} for key, (kind, settings) in self.weights.items()}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        weights = {}
        for key, settings in dict(data["weights"]).items():
            kind = settings["coding"]
            weights[key] = (kind, {name: value for name, value in settings.items() if name != "coding"})
        return cls(weights)
