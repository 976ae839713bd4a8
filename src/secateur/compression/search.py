"""A budget on a metric: the least that may be kept while the metric falls by no more than asked, found by trying."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

from secateur.allocate import Budget

log = logging.getLogger("secateur")
RESOLUTION = 0.02  # of dense MACs: the last two tries are no farther apart


@dataclass(frozen=True, kw_only=True)
class Try:
    """One budget that was tried. The metric is a fraction, of validation data; a point is 0.01 of it."""

    macs: float  # fraction of dense, as asked
    kept: float  # the fraction that it came to; more where all groups are at their floors
    metric: float
    drop_points: float  # below the dense model; negative where it is above
    is_met: bool


@dataclass(frozen=True, kw_only=True)
class Found:
    """The budget that a search came to, without its metric, and every try in order. `note` is empty where it is met."""

    budget: Budget
    tries: tuple[Try, ...]
    note: str = ""


def search_budget(budget: Budget, dense: float, attempt: Callable[[Budget], tuple[float, float]]) -> Found:
    """Find the smallest fraction of MACs with which the metric stays within `budget.drop_points` of the dense model's.

    Bisection: it assumes that a model that keeps more is no worse, and where that does not hold it still ends at a
    fraction that was tried and met. What else the budget asks for holds in every try; its own `macs`, or 1, is where
    the search starts from above.

    Args:
        budget: with `drop_points`.
        dense: the dense model's metric, larger = better.
        attempt: makes the model that a budget means; gives its metric on the same data, and the MACs that it keeps.

    >>> found = search_budget(Budget(drop_points=1), 0.93, lambda tried: (0.93 - 0.05 * (1 - tried.macs), tried.macs))
    >>> found.budget.macs, len(found.tries)
    (0.8125, 6)
    """
    allowed = budget.drop_points
    assert allowed is not None
    tries: list[Try] = []

    def is_met(macs: float) -> bool:
        metric, kept = attempt(replace(budget, macs=macs, drop_points=None))
        points = 100 * (dense - metric)
        tries.append(Try(macs=macs, kept=kept, metric=metric, drop_points=points, is_met=points <= allowed + 1e-9))
        log.info("macs=%.3f: metric %.4f, %.2f points below dense; %g may be lost", macs, metric, points, allowed)
        return tries[-1].is_met

    low, high = 0.0, 1.0 if budget.macs is None else budget.macs
    is_reached = len(budget.asked()) == 1 or is_met(high)  # what keeps all loses nothing
    while is_reached and high - low > RESOLUTION:
        middle = (low + high) / 2
        if not is_met(middle):
            low = middle
        elif tries[-1].kept > middle + RESOLUTION:
            low = high = tries[-1].kept  # the floors: nothing less is to be had
        else:
            high = middle
    note = ""
    if not is_reached:
        note = (
            f"drop_points={allowed:g} is out of reach: with the rest of the budget, the metric is"
            f" {tries[-1].drop_points:.2f} points below dense on validation data."
        )
    return Found(budget=replace(budget, macs=high, drop_points=None), tries=tuple(tries), note=note)
