"""Spending a budget: steps of groups, cheapest first, as far as the budget allows.

Bisection finds the longest run of steps that fits. Runs are nested, so a smaller budget never keeps more of any group.
Where the next step is too coarse and the run ends more than `TOLERANCE` below the budget, the block of that step stays
as it is and the others go on, at most `MAX_SKIPS` times; nesting then gives way to meeting the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.budget import Budget, Space
from secateur.errors import ConfigError

TOLERANCE = 0.02  # of dense: how far below the budget still meets it
MAX_SKIPS = 64  # blocks that may be left behind because their next step is too coarse; each costs one bisection
ROUNDING = 1e-9  # of dense: forgives the binary form of budgets such as 0.3


class Meter:
    """Says what fraction of the dense model a choice of levels keeps."""

    def __init__(self, blocks: Sequence[Block], space: Space, budget: Budget) -> None:
        self.blocks = blocks
        self.space = space
        self.asked = budget.asked()
        dense_counts = self.counts(torch.tensor([block.highest for block in blocks]))
        self.n_units = sum(dense_counts.values())
        self.dense = space.cost(dense_counts)
        for name, dense in (("params", self.dense.params), ("macs", self.dense.macs)):
            if name in self.asked and dense <= 0:
                raise ConfigError(
                    f"The budget asks for {name}={self.asked[name]:g}, but the dense model has {dense} {name}."
                )

    def counts(self, levels: Tensor) -> dict[str, int]:
        """Return how many units each group keeps."""
        pairs = zip(self.blocks, levels.tolist(), strict=True)
        return {name: count for block, level in pairs for name, count in block.counts(level).items()}

    def fractions(self, levels: Tensor) -> dict[str, float]:
        """Return the fraction of dense that is kept, of width, params and macs."""
        counts = self.counts(levels)
        cost = self.space.cost(counts)
        return {
            "width": sum(counts.values()) / self.n_units,
            "params": cost.params / self.dense.params if self.dense.params else 1.0,
            "macs": cost.macs / self.dense.macs if self.dense.macs else 1.0,
        }

    def slack(self, levels: Tensor) -> dict[str, float]:
        """Return asked minus kept for each fraction that is asked; the model's cost is computed only if asked."""
        if set(self.asked) == {"width"}:
            return {"width": self.asked["width"] - sum(self.counts(levels).values()) / self.n_units}
        kept = self.fractions(levels)
        return {name: asked - kept[name] for name, asked in self.asked.items()}

    def fits(self, levels: Tensor) -> bool:
        """Say whether every fraction is at most what was asked."""
        return min(self.slack(levels).values()) >= -ROUNDING


def spend(blocks: Sequence[Block], prices: Sequence[Tensor], meter: Meter) -> tuple[Tensor, list[str]]:
    """Take steps in ascending price from the floors while they fit.

    Args:
        prices: per block, (highest - lowest,), never falling.
    Returns:
        (len(blocks),) int64 levels, and notes: why the budget is missed, if it is.
    """
    levels = torch.tensor([block.lowest for block in blocks])
    if not meter.fits(levels):
        return levels, _out_of_reach(meter, levels)
    owners = torch.repeat_interleave(torch.arange(len(blocks)), torch.tensor([len(price) for price in prices]))
    # Stable: equal prices go in network order, and within a block from the lower level up.
    steps = owners[torch.sort(torch.cat(list(prices)), stable=True).indices]
    skipped: list[Block] = []
    for _ in range(MAX_SKIPS):
        n_taken = _longest_run(steps, levels, meter)
        levels = _after(steps[:n_taken], levels)
        if n_taken == len(steps) or min(meter.slack(levels).values()) <= TOLERANCE:
            break
        coarse = int(steps[n_taken])
        skipped.append(blocks[coarse])
        steps = steps[n_taken:]
        steps = steps[steps != coarse]
    return levels, shortfall(meter, levels, skipped)


def _after(steps: Tensor, levels: Tensor) -> Tensor:
    return levels + torch.bincount(steps, minlength=len(levels))


def _longest_run(steps: Tensor, levels: Tensor, meter: Meter) -> int:
    """Return the largest n such that the first n steps fit. No step at all fits, by assumption."""
    if meter.fits(_after(steps, levels)):
        return len(steps)
    fits, too_many = 0, len(steps)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if meter.fits(_after(steps[:middle], levels)):
            fits = middle
        else:
            too_many = middle
    return fits


def _out_of_reach(meter: Meter, levels: Tensor) -> list[str]:
    return [
        f"{name}={meter.asked[name]:g} is out of reach: with every group at its floor, {meter.asked[name] - slack:.4f} "
        "of the dense model is left. Lower floor or round_to, or free groups that are frozen or tied."
        for name, slack in meter.slack(levels).items()
        if slack < -ROUNDING
    ]


def shortfall(meter: Meter, levels: Tensor, skipped: Sequence[Block] = ()) -> list[str]:
    """Return a note for each fraction that ends more than the tolerance below what was asked.

    Args:
        skipped: blocks whose next step was too coarse.
    """
    slacks = meter.slack(levels)
    tightest = min(slacks, key=lambda name: slacks[name])
    notes = []
    for name, slack in slacks.items():
        if slack <= TOLERANCE:
            continue
        if slacks[tightest] <= TOLERANCE:
            reason = f"{tightest}={meter.asked[tightest]:g} is the tighter budget."
        elif not skipped:
            reason = "the allocation method takes no further step."
        else:
            reason = (
                f"one more step of {', '.join(map(str, skipped[:3]))}{' and others' * (len(skipped) > 3)} would exceed "
                "the budget. Steps are coarse where groups are narrow or tied, or where round_to is large."
            )
        notes.append(f"{name} is {meter.asked[name] - slack:.4f} where {meter.asked[name]:g} was asked: {reason}")
    return notes
