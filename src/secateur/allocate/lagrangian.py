"""Least total error under a budget: one exchange rate between error and cost for all groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.methods import ALLOCATIONS, AllocationMethod, Global, Uniform
from secateur.allocate.steps import price_steps, step_costs, step_gains
from secateur.allocate.walk import Meter, shortfall, spend

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
    fits, and room that it leaves goes to the steps that still fit, but not to any that raises the error; the choice of
    least error wins. The first is the better of `Uniform` and `Global`: it is never worse than these.

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

    def filled(start: Choice, costs: Sequence[Tensor]) -> Choice:
        levels, notes = fill(blocks, saved, costs, meter, start.levels)
        return Choice(error_of(blocks, saved, levels), levels, notes)

    start = min(choice(Uniform().prices(blocks, gains)), choice(Global().prices(blocks, gains)), key=_error)
    if not meter.fits(start.levels):  # even the floors cost too much
        return start
    seen = {tuple(start.levels.tolist())}
    costs = step_costs(blocks, meter, start.levels, binding(meter, start.levels))
    best = filled(start, costs)
    for _ in range(MAX_ROUNDS):
        found = choice([price_steps(gain, cost) for gain, cost in zip(saved, costs, strict=True)])
        if tuple(found.levels.tolist()) in seen:
            break
        seen.add(tuple(found.levels.tolist()))
        here = step_costs(blocks, meter, found.levels, binding(meter, found.levels))
        best = min(best, filled(found, here), key=_error)
        costs = [(old + new) / 2 for old, new in zip(costs, here, strict=True)]  # damps swings between neighbours
    return best


def fill(
    blocks: Sequence[Block], saved: Sequence[Tensor], costs: Sequence[Tensor], meter: Meter, levels: Tensor
) -> tuple[Tensor, list[str]]:
    """Spend what is left of the budget from `levels` upwards: on any step that fits, the one that saves most first.

    Each block then goes back to its best level so far: no step is taken that raises the error.
    """
    rest, prices = [], []
    for block, gain, cost, level in zip(blocks, saved, costs, levels.tolist(), strict=True):
        rest.append(replace(block, lowest=level))
        prices.append(price_steps(gain[level - block.lowest :], cost[level - block.lowest :]))
    reached, notes = spend(rest, prices, meter, tolerance=0.0)
    best = []
    for block, gain, start, end in zip(blocks, saved, levels.tolist(), reached.tolist(), strict=True):
        won = torch.cat([gain.new_zeros(1), gain[start - block.lowest : end - block.lowest].cumsum(0)])
        best.append(start + int((won == won.max()).nonzero()[-1]))
    if best == reached.tolist():
        return reached, notes
    return torch.tensor(best), shortfall(meter, torch.tensor(best))


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
