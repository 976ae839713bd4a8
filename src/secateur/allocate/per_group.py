"""Methods that look at each group by itself: so many units, or those above a quantile; a budget may cut further."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.methods import ALLOCATIONS, SteppingMethod
from secateur.allocate.steps import edges
from secateur.allocate.walk import Meter, spend
from secateur.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class PerGroupMethod(SteppingMethod):
    """A rule that says of each group by itself how many units stay. A budget is optional, and may cut further.

    Tied groups keep one fraction: the largest that any of them asks for. Counts round up to what the steps allow.
    Under a budget groups grow towards these counts at one pace, by the same fraction of the way.
    """

    needs_budget: ClassVar[bool] = False
    floor: float = 0.0

    @abstractmethod
    def n_kept(self, gains: Tensor) -> int:
        """Return how many units of a group stay, given (size,) gains of the best unit first."""

    def highest(self, block: Block, gains: Mapping[str, Tensor]) -> int:
        """Return the lowest level of the block that keeps what each of its groups asks for."""
        asked = max(self.n_kept(gains[name]) / size for name, size in zip(block.names, block.sizes, strict=True))
        enough = edges(block).double() / block.unit >= asked - 1e-9
        return block.lowest + int(enough.nonzero()[0])

    def prices(self, blocks: Sequence[Block], gains: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the fraction of the way at which each step is due."""
        return [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (b.highest - b.lowest for b in blocks)]

    def choose(self, blocks: Sequence[Block], gains: Mapping[str, Tensor], meter: Meter) -> tuple[Tensor, list[str]]:
        """Take steps up to what the groups ask for, as far as the budget allows."""
        asked = [replace(block, highest=self.highest(block, gains)) for block in blocks]
        return spend(asked, self.prices(asked, gains), meter)


@ALLOCATIONS.register("quantile")
@dataclass(frozen=True, kw_only=True)
class Quantile(PerGroupMethod):
    """Each group keeps the units that score at least its q-quantile: about the fraction 1 - q, and all of equal scores.

    Between two scores the quantile is interpolated, so a unit below it always goes.

    Args:
        q: in [0, 1); 0 keeps all.

    >>> Quantile(q=0.3)
    Quantile(floor=0.0, round_to=1, q=0.3)
    """

    name: ClassVar[str] = "quantile"
    q: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.q, bool) or not 0 <= self.q < 1:
            raise ConfigError(f"q={self.q} is outside [0, 1). It is the fraction that goes: 0.3 drops 30 %.")

    def n_kept(self, gains: Tensor) -> int:
        """Return how many gains reach the quantile."""
        return int((gains >= gains.quantile(self.q)).sum())


@ALLOCATIONS.register("top_n")
@dataclass(frozen=True, kw_only=True)
class TopN(PerGroupMethod):
    """Each group keeps its n best units, or all where it has fewer.

    >>> TopN(n=8)
    TopN(floor=0.0, round_to=1, n=8)
    """

    name: ClassVar[str] = "top_n"
    n: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.n, bool) or not isinstance(self.n, int) or self.n < 1:
            raise ConfigError(f"n={self.n} is not a positive integer. It is how many units each group keeps.")

    def n_kept(self, gains: Tensor) -> int:
        """Return n, or the size of a smaller group."""
        return min(self.n, len(gains))
