"""Dynamic programming over levels: the best choice where costs add up, and the best near a choice where they do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.lagrangian import Choice, binding, error_of, fill, least_error
from secateur.allocate.methods import ALLOCATIONS, AllocationMethod
from secateur.allocate.steps import step_costs, step_gains
from secateur.allocate.walk import ROUNDING, Meter
from secateur.errors import ConfigError

MAX_SOLVES = 24  # knapsacks per allocation; each has a new place or a smaller radius
MAX_OPTIONS = 128  # levels of one block in one knapsack


@ALLOCATIONS.register("dynamic")
@dataclass(frozen=True, kw_only=True)
class DynamicProgram(AllocationMethod):
    """Minimise sum over groups g of errors_g[k_g] under the budget, by knapsacks over all levels of all groups.

    Where costs add up (a latency table per group, parameters of a chain without coupling) the first knapsack is the
    best choice there is, holes in the convex hull included. Costs of coupled groups are products: then each knapsack
    takes the costs at the best choice so far, over levels within a radius of it. A result that really fits and leaves
    less error is the new best; otherwise the radius halves. It starts from the choice of `Lagrangian`, with the radius
    at the full width, and is never worse. Room that is left goes to the steps that save most per cost, but not to any
    that raises the error.

    Args:
        n_states: partial sums that are kept after each group; where there are more, the best of each slice of cost.
    Source: Frantar and Alistarh, "SPDY: Accurate Pruning with Speedup Guarantees", ICML 2022, section 3; Kurtic et
    al., "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS 2023, section 3.
    Differs: those round costs to a grid first; this keeps the exact sums (`knapsack`) and thins them by slices. Those
    search over scales of the errors with real runs; this takes errors as given.

    >>> DynamicProgram().n_states
    1024
    """

    name: ClassVar[str] = "dynamic"
    n_states: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.n_states, bool) or not isinstance(self.n_states, int) or self.n_states < 2:
            raise ConfigError(f"n_states={self.n_states} is not an integer of at least 2. Use about 1000.")

    def choose(self, blocks: Sequence[Block], gains: Mapping[str, Tensor], meter: Meter) -> tuple[Tensor, list[str]]:
        """Return the best choice that was met."""
        best = least_error(blocks, gains, meter)
        if not meter.fits(best.levels):
            return best.levels, best.notes
        saved = [step_gains(block, gains) for block in blocks]
        radius = max((len(steps) for steps in saved), default=0)
        costs = step_costs(blocks, meter, best.levels, binding(meter, best.levels))
        for _ in range(MAX_SOLVES):
            if radius < 1:
                break
            found = self._improve(blocks, saved, meter, best.levels, costs, radius)
            if found is not None and found.error < best.error:
                best = found
                costs = step_costs(blocks, meter, best.levels, binding(meter, best.levels))
            else:
                radius //= 2
        return best.levels, best.notes

    def _improve(
        self,
        blocks: Sequence[Block],
        saved: Sequence[Tensor],
        meter: Meter,
        at: Tensor,
        costs: list[Tensor],
        radius: int,
    ) -> Choice | None:
        """Return the knapsack's choice within `radius` of `at`, filled up; None where it does not really fit."""
        low = torch.tensor([max(block.lowest, int(level) - radius) for block, level in zip(blocks, at, strict=True)])
        high = torch.tensor([min(block.highest, int(level) + radius) for block, level in zip(blocks, at, strict=True)])
        errors, sums, spent = [], [], 0.0
        for block, gain, cost, a, b, here in zip(blocks, saved, costs, low, high, at, strict=True):
            within = slice(int(a) - block.lowest, int(b) - block.lowest)
            errors.append(torch.cat([gain.new_zeros(1), -gain[within].cumsum(0)]))
            sums.append(torch.cat([cost.new_zeros(1), cost[within].cumsum(0)]))
            spent += float(sums[-1][int(here) - int(a)])
        name = binding(meter, at)
        picks = knapsack(errors, sums, spent + meter.slack(at)[name] + ROUNDING, self.n_states)
        levels = low + torch.tensor(picks)
        if not meter.fits(levels):
            return None
        levels, notes = fill(blocks, saved, costs, meter, levels)
        return Choice(error_of(blocks, saved, levels), levels, notes)


def knapsack(errors: Sequence[Tensor], costs: Sequence[Tensor], limit: float, n_states: int = 1024) -> list[int]:
    """Pick one option of each item: the least sum of errors with a sum of costs of at most `limit`.

    After each item, the sums that no other sum beats in both cost and error are kept. If these are more than
    `n_states`, costs are cut into that many slices and the sum of least error is kept in each; below that number the
    result is exact.

    Args:
        errors, costs: per item, (n_options,) float64; the cheapest options together fit.
    Returns:
        per item, the index of its option; of equal sums the cheaper one.
    Source: Nemhauser and Ullmann, "Discrete Dynamic Programming and Capital Allocation", Management Science 1969.

    >>> knapsack([torch.tensor([5.0, 1.0, 0.0]), torch.tensor([4.0, 0.0])], [torch.arange(3.0), torch.arange(2.0)], 2.0)
    [1, 1]
    """
    total_cost, total_error = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    room = limit - sum(float(cost.min()) for cost in costs)  # for all that costs more than the cheapest options
    traces: list[tuple[Tensor, Tensor]] = []
    for error, cost in zip(errors, costs, strict=True):
        extra = cost.double() - cost.min()
        options = _frontier(extra, error.double(), room, MAX_OPTIONS)
        sums = (total_cost[:, None] + extra[options]).flatten()
        left = (total_error[:, None] + error.double()[options]).flatten()
        kept = _frontier(sums, left, room, n_states)
        total_cost, total_error = sums[kept], left[kept]
        traces.append((kept // len(options), options[kept % len(options)]))
    state = len(total_cost) - 1  # errors fall along the frontier
    picks = []
    for before, option in reversed(traces):
        picks.append(int(option[state]))
        state = int(before[state])
    return picks[::-1]


def _frontier(costs: Tensor, errors: Tensor, limit: float, n: int) -> Tensor:
    """Return indices of the points within `limit` that no other beats, by rising cost, about `n` at most."""
    order = torch.sort(errors, stable=True).indices
    order = order[torch.sort(costs[order], stable=True).indices]
    order = order[costs[order] <= max(limit, 0.0)]
    lowest = torch.cummin(errors[order], 0).values
    is_better = torch.ones(len(order), dtype=torch.bool)
    is_better[1:] = lowest[1:] < lowest[:-1]
    front = order[is_better]
    if len(front) > n:
        slices = (costs[front] / (limit / n)).floor()
        is_last = torch.ones(len(front), dtype=torch.bool)  # the last of a slice has its least error
        is_last[:-1] = slices[1:] != slices[:-1]
        is_last[0] = True  # the cheapest, which keeps every later item within reach
        front = front[is_last]
    return front
