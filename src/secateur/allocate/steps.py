"""The steps of blocks from level to level: what each saves, what each costs, and in which order they are worth it.

A block is one dimension of choice; its step i leads from level lowest + i to lowest + i + 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.walk import Meter

MAX_POINTS = 17  # levels of a block at which its cost is computed; between them it is drawn straight
MAX_STAIRS = 129  # the same for latency, which falls in steps


def edges(block: Block) -> Tensor:
    """Return the shares kept at the levels from lowest to highest, int64."""
    return (torch.arange(block.lowest, block.highest + 1) * block.stride).clamp(max=block.unit)


def step_units(block: Block) -> Tensor:
    """Return how many units each step adds, over all groups of the block, int64."""
    return edges(block).diff() * sum(block.sizes) // block.unit


def step_gains(block: Block, gains: Mapping[str, Tensor]) -> Tensor:
    """Return what each step saves: the sum of gains of the units that it adds, over all groups of the block, float64.

    Args:
        gains: by group, (size,) float64, of the best unit first.
    """
    shares = edges(block)
    saved = torch.zeros(len(shares) - 1, dtype=torch.float64)
    for name, size in zip(block.names, block.sizes, strict=True):
        ends = shares * size // block.unit
        which = torch.repeat_interleave(torch.arange(len(saved)), ends.diff())
        saved.index_add_(0, which, gains[name][ends[0] : ends[-1]])
    return saved


def step_costs(blocks: Sequence[Block], meter: Meter, levels: Tensor, name: str) -> list[Tensor]:
    """Return what each step of each block costs while the other blocks stand at `levels`.

    Costs of coupled widths are products, so they depend on `levels`. They are exact for blocks with at most
    `MAX_POINTS` levels (of latency `MAX_STAIRS`); of wider ones that many are computed and the rest interpolated.

    Args:
        name: one of the things that the budget asks for.
    Returns:
        per block, (highest - lowest,) float64, in fractions of dense, never negative.
    """
    most = MAX_STAIRS if meter.limits[name][0] == "latency" else MAX_POINTS
    found = []
    for i, block in enumerate(blocks):
        n_levels = block.highest - block.lowest + 1
        at = torch.linspace(0, n_levels - 1, min(n_levels, most), dtype=torch.float64).round().long()
        costs = []
        for offset in at.tolist():
            moved = levels.clone()
            moved[i] = block.lowest + offset
            costs.append(meter.kept(moved)[name])
        slopes = torch.tensor(costs, dtype=torch.float64).diff() / at.diff()
        found.append(torch.repeat_interleave(slopes, at.diff()).clamp(min=0))
    return found


def price_steps(gains: Tensor, costs: Tensor) -> Tensor:
    """Price steps that can only be taken in order: minus gain per cost, where a poor step shares with those it unlocks.

    The prices are the slopes of the lower convex hull of error over cost. Neighbours are pooled as long as a later step
    has the better ratio, so that taking steps in ascending price never waits for a bargain behind a bad step.

    Args:
        gains: (n,) float64, any sign; costs: (n,), not negative.
    Returns:
        (n,) float64, never falling; -inf for steps that cost nothing and lose nothing.
    Source: pooling adjacent violators, Barlow et al., "Statistical Inference under Order Restrictions", 1972, 1.2.

    >>> price_steps(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, 1.0])).tolist()
    [-3.0, -1.5, -1.5]
    """
    ratios = gains / costs
    if (costs > 0).all() and (ratios.diff() <= 0).all():
        return -ratios
    pools: list[tuple[float, float, int]] = []  # gain, cost, number of steps
    for gain, cost in zip(gains.tolist(), costs.tolist(), strict=True):
        n = 1
        while pools and (cost == 0 <= gain or pools[-1][0] * cost < gain * pools[-1][1]):
            before = pools.pop()
            gain, cost, n = before[0] + gain, before[1] + cost, before[2] + n
        pools.append((gain, cost, n))
    of_pool = [-gain / cost if cost else float("-inf" if gain >= 0 else "inf") for gain, cost, _ in pools]
    spread = torch.repeat_interleave(torch.tensor(of_pool, dtype=torch.float64), torch.tensor([n for *_, n in pools]))
    return spread.cummax(0).values  # removes rounding errors
