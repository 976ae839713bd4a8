"""Spending a budget: steps of groups, cheapest first, as far as the budget allows.

Bisection finds the longest run of steps that fits. Runs are nested, so a smaller budget never keeps more of any group.
Where the next step is too coarse and the run ends more than a tolerance below the budget, the block of that step stays
as it is and the others go on, at most `MAX_SKIPS` times; nesting then gives way to meeting the budget.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.budget import MEASURES, Budget, Space
from secateur.errors import ConfigError

TOLERANCE = 0.02  # of dense: how far below the budget still meets it
MAX_SKIPS = 64  # blocks that may be left behind because their next step is too coarse; each costs one search
ROUNDING = 1e-9  # of dense: forgives the binary form of budgets such as 0.3


class Meter:
    """Says what fraction of the dense model a choice of levels keeps, and how far that is from the budget."""

    def __init__(self, blocks: Sequence[Block], space: Space, budget: Budget | None) -> None:
        self.blocks = blocks
        self.space = space
        self.asked = {} if budget is None else budget.asked()
        if "drop_points" in self.asked:
            raise ConfigError(
                f"drop_points={self.asked['drop_points']:g} is met by trying budgets on data, which secateur.compress"
                " does. Give another budget here."
            )
        self.dense = self._uses(torch.tensor([block.highest for block in blocks]))
        self.limits: dict[str, tuple[str, float]] = {}  # what was asked -> what of, and the fraction of dense
        for name, value in self.asked.items():
            of = name if name in MEASURES else next(short for short, full in MEASURES.items() if full == name)
            if self.dense[of] <= 0:
                unmeasured = " No time was measured." if of == "latency" else ""
                raise ConfigError(
                    f"The budget asks for {name}={value:g}, but the dense model has 0 {MEASURES[of]}.{unmeasured}"
                )
            self.limits[name] = of, value if name in MEASURES else min(1.0, value / self.dense[of])

    def counts(self, levels: Tensor) -> dict[str, int]:
        """Return how many units each group keeps."""
        pairs = zip(self.blocks, levels.tolist(), strict=True)
        return {name: count for block, level in pairs for name, count in block.counts(level).items()}

    def fractions(self, levels: Tensor) -> dict[str, float]:
        """Return the fraction of dense that is kept, of all that the dense model has any of."""
        used = self._uses(levels)
        return {name: used[name] / dense for name, dense in self.dense.items() if dense}

    def kept(self, levels: Tensor) -> dict[str, float]:
        """Return the fraction of dense that is kept of each thing that the budget asks for, by its name there."""
        kept = self.fractions(levels)
        return {name: kept[of] for name, (of, _) in self.limits.items()}

    def slack(self, levels: Tensor) -> dict[str, float]:
        """Return asked minus kept, as a fraction of dense; the model's cost is computed only if asked."""
        if set(self.asked) == {"width"}:
            return {"width": self.asked["width"] - sum(self.counts(levels).values()) / self.dense["width"]}
        kept = self.kept(levels)
        return {name: limit - kept[name] for name, (_, limit) in self.limits.items()}

    def left(self, name: str, slack: float) -> str:
        """Return what is kept of a budget with that slack, in the unit in which it was asked."""
        of, limit = self.limits[name]
        return f"{limit - slack:.4f}" if name == of else f"{(limit - slack) * self.dense[of]:,.6g}"

    def _uses(self, levels: Tensor) -> dict[str, float]:
        counts = self.counts(levels)
        cost = self.space.cost(counts)
        return {
            name: sum(counts.values()) if name == "width" else getattr(cost, field) for name, field in MEASURES.items()
        }

    def fits(self, levels: Tensor) -> bool:
        """Say whether every fraction is at most what was asked."""
        return all(slack >= -ROUNDING for slack in self.slack(levels).values())


def spend(
    blocks: Sequence[Block], prices: Sequence[Tensor], meter: Meter, tolerance: float = TOLERANCE
) -> tuple[Tensor, list[str]]:
    """Take steps in ascending price from the floors while they fit.

    Args:
        prices: per block, (highest - lowest,), never falling.
        tolerance: of dense; how near to the budget is near enough to leave the other steps. 0 tries them all.
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
        n_taken = _longest_run(steps, levels, meter, first=1 if skipped else len(steps))  # later runs are short
        levels = _after(steps[:n_taken], levels)
        if n_taken == len(steps) or min(meter.slack(levels).values(), default=0.0) <= tolerance:
            break
        coarse = int(steps[n_taken])
        skipped.append(blocks[coarse])
        steps = steps[n_taken:]
        steps = steps[steps != coarse]
    return levels, shortfall(meter, levels, skipped)


def _after(steps: Tensor, levels: Tensor) -> Tensor:
    return levels + torch.bincount(steps, minlength=len(levels))


def _longest_run(steps: Tensor, levels: Tensor, meter: Meter, first: int) -> int:
    """Return the largest n such that the first n steps fit. No step at all fits, by assumption.

    Args:
        first: the number that is tried first, and doubled while it fits.
    """
    fits, too_many = 0, first
    while meter.fits(_after(steps[:too_many], levels)):
        if too_many >= len(steps):
            return len(steps)
        fits, too_many = too_many, min(2 * too_many, len(steps))
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if meter.fits(_after(steps[:middle], levels)):
            fits = middle
        else:
            too_many = middle
    return fits


def _out_of_reach(meter: Meter, levels: Tensor) -> list[str]:
    return [
        f"{name}={meter.asked[name]:g} is out of reach: with every group at its floor, {meter.left(name, slack)}"
        f"{' of the dense model' if name in MEASURES else ''} is left."
        " Lower floor or round_to, or free groups that are frozen or tied."
        for name, slack in meter.slack(levels).items()
        if slack < -ROUNDING
    ]


def shortfall(meter: Meter, levels: Tensor, skipped: Sequence[Block] = ()) -> list[str]:
    """Return a note for each fraction that ends more than the tolerance below what was asked.

    Args:
        skipped: blocks whose next step was too coarse.
    """
    slacks = meter.slack(levels)
    tightest = min(slacks, key=lambda name: slacks[name], default="")
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
        notes.append(f"{name} is {meter.left(name, slack)} where {meter.asked[name]:g} was asked: {reason}")
    return notes
