"""How a budget is shared out. Most methods put a price on every step of a group, and the cheapest steps go first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.steps import edges, price_steps, step_gains, step_units
from secateur.allocate.walk import Meter, spend
from secateur.calls import make
from secateur.errors import ConfigError
from secateur.registry import Registry


@dataclass(frozen=True, kw_only=True)
class AllocationMethod(ABC):
    """A way to choose how many units each group keeps.

    Args:
        floor: the smallest fraction that any group keeps, in [0, 1]; at least 1 unit is always kept.
        round_to: counts are multiples of it, for groups at least that wide; the full width is always allowed.
    """

    name: ClassVar[str]
    needs_budget: ClassVar[bool] = True
    floor: float = 0.1
    round_to: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.floor, bool) or not 0 <= self.floor <= 1:
            raise ConfigError(f"floor={self.floor} is outside [0, 1]. It is the smallest fraction kept of any group.")
        if isinstance(self.round_to, bool) or not isinstance(self.round_to, int) or self.round_to < 1:
            raise ConfigError(
                f"round_to={self.round_to} is not a positive integer. Use 8 for multiples of 8, 1 for any."
            )

    @abstractmethod
    def choose(self, blocks: Sequence[Block], gains: Mapping[str, Tensor], meter: Meter) -> tuple[Tensor, list[str]]:
        """Choose the level of every block.

        Args:
            gains: by group, (size,) float64 on the CPU: what each unit saves, of the best unit first.
        Returns:
            (len(blocks),) int64 levels, and notes: why the budget is missed, if it is.
        """


@dataclass(frozen=True, kw_only=True)
class SteppingMethod(AllocationMethod):
    """An order in which groups grow from their floors to their full widths, until the budget is used up."""

    @abstractmethod
    def prices(self, blocks: Sequence[Block], gains: Mapping[str, Tensor]) -> list[Tensor]:
        """Price the steps of each block; among all blocks, steps are taken in ascending price.

        Returns:
            per block, (highest - lowest,) float64, never falling; entry i prices the step to level lowest + i + 1.
        """

    def choose(self, blocks: Sequence[Block], gains: Mapping[str, Tensor], meter: Meter) -> tuple[Tensor, list[str]]:
        """Take the cheapest steps that fit."""
        return spend(blocks, self.prices(blocks, gains), meter)


ALLOCATIONS: Registry[str, type[AllocationMethod]] = Registry("allocation method")


@ALLOCATIONS.register("uniform")
@dataclass(frozen=True, kw_only=True)
class Uniform(SteppingMethod):
    """Every group keeps the same fraction f of its width, as near as its steps allow.

    price(j -> j + 1) = (n(j) + n(j + 1)) / (2 * unit): the fraction f from which level j + 1 is nearer than level j.
    Walking through prices is raising f from 0 to 1, one step of one group at a time; equal steps go in network order.
    Source: rounding by nearest is the divisor method of Webster, as in the apportionment of seats.

    >>> Uniform(round_to=8)
    Uniform(floor=0.1, round_to=8)
    """

    name: ClassVar[str] = "uniform"

    def prices(self, blocks: Sequence[Block], gains: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the fraction at which each step is due."""
        shares = [edges(block) for block in blocks]
        return [(n[1:] + n[:-1]).double() / (2 * block.unit) for n, block in zip(shares, blocks, strict=True)]


@ALLOCATIONS.register("global")
@dataclass(frozen=True, kw_only=True)
class Global(SteppingMethod):
    """One threshold over the scores of all groups: what scores above it stays, and every group keeps its floor.

    price(j -> j + 1) = -mean of the scores of the units that the step adds, over all groups of the block. Needs scores
    on one scale: criteria normalize for that. Equal scores go in network order.

    >>> Global(floor=0.25)
    Global(floor=0.25, round_to=1)
    """

    name: ClassVar[str] = "global"

    def prices(self, blocks: Sequence[Block], gains: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the negative mean score of what each step adds."""
        return [price_steps(step_gains(block, gains), step_units(block)) for block in blocks]


def make_method(spec: str | AllocationMethod) -> AllocationMethod:
    """Return the method that `spec` means: a registered name, with settings or without, or a method.

    >>> make_method("uniform?round_to=8")
    Uniform(floor=0.1, round_to=8)
    """
    if isinstance(spec, str):
        return make(ALLOCATIONS, spec)
    if isinstance(spec, AllocationMethod):
        return spec
    raise ConfigError(
        f"{spec!r} is no allocation method. Pass one such as Uniform(), or a name: {', '.join(ALLOCATIONS)}."
    )
