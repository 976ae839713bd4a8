"""From scores to what each group keeps, under a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.allocate.blocks import make_blocks
from secateur.allocate.budget import Budget, Space
from secateur.allocate.curves import ErrorCurve, ranked
from secateur.allocate.methods import AllocationMethod, make_method
from secateur.allocate.walk import Meter
from secateur.errors import ConfigError, GroupError


@dataclass(frozen=True)
class Allocation:
    """What each group keeps, and what that comes to.

    Args:
        keep: sorted original indices for each scored group.
        achieved: the fraction of dense that is kept, by the names of `MEASURES`, of all that dense has any of.
        notes: why the budget is not met within 2 % of dense, and which groups could not move.
    """

    keep: dict[str, tuple[int, ...]]
    achieved: dict[str, float]
    notes: tuple[str, ...] = ()


def allocate(
    scores: Mapping[str, Tensor | ErrorCurve],
    space: Space,
    budget: Budget | None,
    method: AllocationMethod | str = "global",
) -> Allocation:
    """Choose what each scored group keeps so that the model fits the budget.

    Every achieved fraction is at most the one asked and at least that minus 0.02, or a note says why not. Of equal
    scores the lower index stays; the same input gives the same output.

    Args:
        scores: by group, (size,), any device, larger = keep; or an `ErrorCurve`, whose units stay in its own order.
            Groups of the space without scores keep all.
        budget: None only for a method that chooses counts by itself, such as `TopN`.
        method: an allocation method or its registered name.
    Raises:
        ConfigError: there are no scores, or scores of a group that the space does not have; or the method needs a
            budget and there is none.
        GroupError: scores of the wrong shape, or NaN or Inf among them.

    >>> from secateur.allocate import Cost, Global, Uniform
    >>> space = Space({"a": 4, "b": 4}, cost=lambda counts: Cost(sum(counts.values()), 0))
    >>> scores = {"a": torch.tensor([1.0, 4.0, 3.0, 2.0]), "b": torch.tensor([0.1, 0.2, 0.3, 0.4])}
    >>> allocate(scores, space, Budget(width=0.5), Uniform()).keep
    {'a': (1, 2), 'b': (2, 3)}
    >>> allocate(scores, space, Budget(width=0.75), Global()).keep
    {'a': (0, 1, 2, 3), 'b': (2, 3)}
    """
    method = make_method(method)
    _check(scores, space)
    if budget is None and method.needs_budget:
        raise ConfigError(f"Method '{method.name}' takes a budget. Pass one, such as Budget(macs=0.5).")
    units = {name: ranked(values) for name, values in scores.items()}
    blocks, notes = make_blocks(space, scores.keys(), method.floor, method.round_to)
    meter = Meter(blocks, space, budget)
    levels, missed = method.choose(blocks, {name: gains for name, (gains, _) in units.items()}, meter)
    counts = meter.counts(levels)
    keep = {name: tuple(order[: counts[name]].sort().values.tolist()) for name, (_, order) in units.items()}
    return Allocation(keep, meter.fractions(levels), (*notes, *missed))


def _check(scores: Mapping[str, Tensor | ErrorCurve], space: Space) -> None:
    if not scores:
        raise ConfigError("There are no scores, so nothing can be pruned. Free a group: all are frozen or ignored.")
    if unknown := [name for name in scores if name not in space.sizes]:
        raise ConfigError(f"Scores name {', '.join(map(repr, unknown))}, which the space does not have.")
    for name, values in scores.items():
        shape = tuple(values.order.shape if isinstance(values, ErrorCurve) else values.shape)
        if shape != (space.sizes[name],):
            raise GroupError(f"Scores of '{name}' have shape {shape}; its size is {space.sizes[name]}.")
        if isinstance(values, Tensor) and not torch.isfinite(values).all():
            raise GroupError(f"Scores of '{name}' hold NaN or Inf. Score with score_groups, which names the weights.")
