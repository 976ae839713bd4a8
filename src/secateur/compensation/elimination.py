"""Elimination: which units a layer can do without once its weights are solved for again, and what each costs.

For y = W phi with Gram matrix H = sum phi phi^T and a metric G on y, dropping the columns C of W and solving for the
rest leaves the error tr(A M_CC), A = [H^-1]_CC^-1, M = W^T G W. Greedy: the cheapest units go first, W and H^-1 follow.
W enters only through M, so that the outputs' number costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.allocate.curves import ErrorCurve

_COMPACT = 0.8
"""Columns that left are cut out of the matrices once fewer than this fraction remain."""


@dataclass(frozen=True)
class Problem:
    """One reader of a group.

    Args:
        gram: H, (k, k) float64, positive definite (damped).
        metric: M = W^T G W, (k, k) float64.
        columns: (size, b) int64, the columns of each unit.
    """

    gram: Tensor
    metric: Tensor
    columns: Tensor


def eliminate(problems: Sequence[Problem], step: float = 1 / 64) -> ErrorCurve:
    """Drop the units of a group one after another, the one that costs all its readers least first.

    Args:
        problems: the group's readers; all have one row of `columns` per unit.
        step: the fraction of the units left that may go at once, at least one unit; the joint cost is exact, the
            choice ignores what the units of one step are to each other.
    Returns:
        The error at each width, summed over readers; the unit that goes last comes first in the order.
    Source: Hassibi & Stork, "Second order derivatives for network pruning", NIPS 1992; for structures Kurtic et al.,
        "ZipLM", NeurIPS 2023, section 3.1.
    Differs: the error is measured in a metric of the outputs, for several readers at once, and units may go in steps.

    >>> gram = torch.tensor([[2.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    >>> w = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    >>> curve = eliminate([Problem(gram, w.T @ w, torch.tensor([[0], [1]]))])
    >>> curve.order.tolist(), [round(e, 6) for e in curve.errors.tolist()]
    ([1, 0], [10.0, 1.0, 0.0])
    """
    size = len(problems[0].columns)
    states = [_State(p) for p in problems]
    left = torch.arange(size)
    order: list[Tensor] = []
    errors = torch.zeros(size + 1, dtype=torch.float64)
    total = 0.0
    while len(left) > 0:
        costs = torch.stack([s.costs(left) for s in states]).sum(0)
        n = min(len(left), max(1, int(step * len(left))))
        going = len(left) - 1 - costs.flip(0).argsort(stable=True)[:n]  # of equal ones the lower index stays
        spent = sum(s.drop(left[going]) for s in states)
        # Within a step the joint error is shared out in proportion to the single costs.
        shares = costs[going].cumsum(0)
        shares = shares / shares[-1] if float(shares[-1]) > 0 else torch.linspace(1 / n, 1, n, dtype=torch.float64)
        errors[len(left) - n : len(left)] = total + spent * shares.flip(0)
        total += spent
        order.append(left[going])
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[going] = False
        left = left[stays]
    return ErrorCurve(errors, torch.cat(order).flip(0))


class _State:
    """The inverse Gram matrix and the metric of a reader while columns leave it."""

    def __init__(self, problem: Problem) -> None:
        self.columns = problem.columns
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(problem.gram))
        self.metric = problem.metric.clone()
        self.is_left = torch.ones(len(problem.gram), dtype=torch.bool)

    def costs(self, units: Tensor) -> Tensor:
        """tr([H^-1]_cc^-1 M_cc) for each unit c, (len(units),)."""
        c = self.columns[units]
        inverse, metric = (m[c[:, :, None], c[:, None, :]] for m in (self.inverse, self.metric))
        if c.shape[1] == 1:
            return (metric / inverse).flatten()
        solved: Tensor = torch.linalg.solve(inverse, metric)
        return solved.diagonal(dim1=1, dim2=2).sum(1).clamp(min=0)

    def drop(self, units: Tensor) -> float:
        """Drop units together, solve for the rest, and return what it cost."""
        c = self.columns[units].flatten()
        rows = self.inverse[c]
        solved = torch.linalg.solve(rows[:, c], rows)  # A H^-1_C:
        across = self.metric[:, c]
        cost = torch.linalg.solve(rows[:, c], across[c]).trace()
        half = across - solved.T @ across[c] / 2
        self.metric.addmm_(torch.cat([half, solved.T], 1), torch.cat([solved, half.T]), alpha=-1)
        self.inverse.addmm_(rows.T, solved, alpha=-1)
        self.is_left[c] = False
        if int(self.is_left.sum()) < _COMPACT * len(self.is_left):
            self._compact()
        return max(0.0, float(cost))

    def _compact(self) -> None:
        """Forget the columns that left: every later step goes through the whole matrices."""
        stay = self.is_left.nonzero().flatten()
        places = torch.full((len(self.is_left),), -1)
        places[stay] = torch.arange(len(stay))
        self.columns = places[self.columns]
        self.inverse, self.metric = self.inverse[stay][:, stay], self.metric[stay][:, stay]
        self.is_left = self.is_left[stay]
