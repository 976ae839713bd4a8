"""Least total error under a budget: one exchange rate between error and cost for all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.methods import ALLOCATIONS, AllocationMethod, Global, Uniform
from secateur.allocate.steps import price_steps, step_costs, step_gains
from secateur.allocate.walk import Meter, spend

MAX_ROUNDS = 12  # new linearisations of the cost; most choices settle after six


@dataclass(frozen=True)
class Choice:
    """Levels that fit (or the floors, if nothing does), with the error that they leave and notes on the budget."""

    error: float
    levels: Tensor
    notes: list[str]


@ALLOCATIONS.register("lagrangian")
@dataclass(frozen=True, kw_only=True)
class Lagrangian(AllocationMethod):
    """Minimise sum over groups g of errors_g[k_g] under the budget: a group grows while a step saves enough per cost.

    price(j -> j + 1) = -(error saved) / (cost of the step), on the lower convex hull of error over cost; walking
    through prices is raising the multiplier. Costs are fractions of the budget that binds, the one with the least room
    left. The cost of a step depends on the widths of other groups (MACs of neighbours are products), so costs are taken
    at the last choice, averaged with those before, and the choice repeated until it stays. Every choice on the way
    fits; the one of least error wins. The first is the better of `Uniform` and `Global`: it is never worse than these.

    Scores count as errors that add up; `ErrorCurve`s (elimination paths, measured losses) are taken as they are.
    Source: Shoham and Gersho, "Efficient Bit Allocation for an Arbitrary Set of Quantizers", IEEE Trans. ASSP 1988.
    Differs: there costs add up; here they are linearised, so the result is a point that no single group can improve at
    its prices, not always the best of all. `DynamicProgram` searches on from it.

    >>> Lagrangian()
    Lagrangian(floor=0.1, round_to=1)
    """

    name: ClassVar[str] = "lagrangian"

    def choose(self, blocks: Sequence[Block], gains: Mapping[str, Tensor], meter: Meter) -> tuple[Tensor, list[str]]:
        """Return the choice of least error that was met."""
        best = least_error(blocks, gains, meter)
        return best.levels, best.notes


def least_error(blocks: Sequence[Block], gains: Mapping[str, Tensor], meter: Meter) -> Choice:
    """Return the best choice on the way from the `Uniform` or the `Global` one; of equal errors the first."""
    saved = [step_gains(block, gains) for block in blocks]

    def choice(prices: Sequence[Tensor]) -> Choice:
        levels, notes = spend(blocks, prices, meter)
        return Choice(error_of(blocks, saved, levels), levels, notes)

    best = min(choice(Uniform().prices(blocks, gains)), choice(Global().prices(blocks, gains)), key=_error)
    seen = {tuple(best.levels.tolist())}
    costs = step_costs(blocks, meter, best.levels, binding(meter, best.levels))
    for _ in range(MAX_ROUNDS):
        found = choice([price_steps(gain, cost) for gain, cost in zip(saved, costs, strict=True)])
        if tuple(found.levels.tolist()) in seen:
            break
        seen.add(tuple(found.levels.tolist()))
        best = min(best, found, key=_error)
        here = step_costs(blocks, meter, found.levels, binding(meter, found.levels))
        costs = [(old + new) / 2 for old, new in zip(costs, here, strict=True)]  # damps swings between neighbours
    return best


def error_of(blocks: Sequence[Block], saved: Sequence[Tensor], levels: Tensor) -> float:
    """Return what is lost at `levels`: the gains of all steps that are not taken."""
    lost = [gain[level - block.lowest :].sum() for block, gain, level in zip(blocks, saved, levels, strict=True)]
    return float(torch.stack(lost).sum())


def binding(meter: Meter, levels: Tensor) -> str:
    """Return the name of what the budget asks for that is nearest to its limit, relative to the limit."""
    slack = meter.slack(levels)
    return min(slack, key=lambda name: slack[name] / meter.limits[name][1])


def _error(choice: Choice) -> float:
    return choice.error
