"""The edit that lets weights share values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

from torch import nn

from secateur.coding import Code, codings_of
from secateur.edits import EDITS
from secateur.errors import PlanError
from secateur.sharing.codebook import Codebook


@EDITS.register("share")
@dataclass(frozen=True)
class Codebooks(Code):
    """Codebooks by weight, and from which weight one is borrowed, where it is."""

    kind: ClassVar[str] = "share"
    lenders: dict[str, str] = field(default_factory=dict)

    def replay(self, model: nn.Module) -> nn.Module:
        """Put blank codebooks on a copy."""
        made = super().replay(model)
        books = {key: stack[-1] for key, stack in codings_of(made).items() if isinstance(stack[-1], Codebook)}
        for key, lender in self.lenders.items():
            if key not in books or lender not in books:
                raise PlanError(f"'{key}' can't borrow the codebook of '{lender}': there is none.")
            books[key].borrow_(books[lender])
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {**super().to_data(), "lenders": self.lenders}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        lenders = {str(key): str(lender) for key, lender in dict(data["lenders"]).items()}
        return replace(super().from_data(data), lenders=lenders)
