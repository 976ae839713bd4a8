"""The choice of the weights of one layer that stay, at once or a few columns at a time."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import inf

import torch
from torch import Tensor

from secateur.sparsity.patterns import Pattern, shares


@dataclass(frozen=True)
class Choice:
    """Chooses, by scores, which weights of a layer stay.

    Attributes:
        there: (groups, out, in) bool, weights that earlier steps left; no other can stay.
        kept: units that stay; all that are there, where those are fewer.
        per_row: each output keeps its part of them.
    """

    pattern: Pattern
    there: Tensor
    kept: int
    per_row: bool = False

    def __call__(self, scores: Tensor) -> Tensor:
        """The weights that stay: (groups, out, in) bool, as the scores."""
        return self._among(scores, self.there, self.kept)

    def part(self, scores: Tensor, start: int) -> Tensor:
        """The same for the `pattern.columns` columns from `start` on, which keep their part of `kept`.

        That is in proportion to the units that are there, so that all parts add up to `kept`.
        """
        there = self.there[..., start : start + scores.shape[-1]]
        return self._among(scores, there, int(self._quota[start // self.pattern.columns]))

    @cached_property
    def _quota(self) -> Tensor:
        parts = torch.split(self.there, self.pattern.columns, -1)
        amounts = torch.stack([count_units(self.pattern, part) for part in parts])
        return shares(min(self.kept, int(amounts.sum())), amounts)

    def _among(self, scores: Tensor, there: Tensor, kept: int) -> Tensor:
        flat = torch.where(there, scores, -inf).flatten(0, 1)
        chosen = self.pattern.choose(self.pattern.units(flat), kept, per_row=self.per_row)
        return self.pattern.weights(chosen, flat.shape).view(there.shape) & there


def count_units(pattern: Pattern, there: Tensor) -> Tensor:
    """How many units have a weight that is there: () int64, of (groups, out, in) bool."""
    return (pattern.units(torch.where(there, 0.0, -inf).flatten(0, 1)) > -inf).sum()
