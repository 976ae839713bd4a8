"""Elimination against brute force: drop units, solve least squares for what is left, compare."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.laws.settings import some
from torch import Tensor

from secateur.compensation.elimination import Problem, eliminate


@dataclass(frozen=True)
class Case:
    """A reader: what it sees (n, k), its weight (o, k), the metric of its outputs (o, o), the columns of each unit."""

    x: Tensor
    weight: Tensor
    metric: Tensor
    columns: Tensor

    @property
    def problem(self) -> Problem:
        return Problem(self.x.T @ self.x, self.weight.T @ self.metric @ self.weight, self.columns)

    def error(self, dropped: Sequence[int]) -> float:
        """The least error of the outputs without some units, by least squares."""
        gone = self.columns[list(dropped)].flatten().tolist()
        left = [i for i in range(self.x.shape[1]) if i not in gone]
        y = self.x @ self.weight.T
        best = torch.linalg.lstsq(self.x[:, left], y, driver="gelsd").solution
        gap = y - self.x[:, left] @ best
        return float(torch.einsum("ni,ij,nj->", gap, self.metric, gap))


@st.composite
def readers(draw: st.DrawFn) -> list[Case]:
    """One to three readers of one group of up to six units, each with columns of its own number and order."""
    size = draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    found = []
    for _ in range(draw(st.integers(1, 3))):
        width, others, n_outputs = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(1, 3))
        k = size * width + others
        columns = torch.randperm(k, generator=generator)[: size * width].view(size, width)
        root = normal(n_outputs, n_outputs)
        mixed = normal(3 * k, k) @ normal(k, k)
        found.append(Case(mixed, normal(n_outputs, k), root @ root.T, columns))
    return found


@some(60)
@given(readers())
def test_one_by_one_each_choice_and_error_is_that_of_least_squares(cases: list[Case]):
    curve = eliminate([c.problem for c in cases], step=1e-9)
    size = len(curve.order)
    scale = sum(c.error(range(size)) for c in cases)
    for left in range(size, 0, -1):
        gone = curve.order[left:].tolist()
        errors = {i: sum(c.error([*gone, i]) for c in cases) for i in curve.order[:left].tolist()}
        chosen = int(curve.order[left - 1])
        assert errors[chosen] <= min(errors.values()) + 1e-7 * scale
        assert float(curve.errors[left - 1]) == pytest.approx(errors[chosen], rel=1e-6, abs=1e-7 * scale)


@some(30)
@given(readers(), st.sampled_from([0.2, 0.5, 0.9]))
def test_of_units_that_go_together_the_error_is_exact(cases: list[Case], step: float):
    curve = eliminate([c.problem for c in cases], step=step)
    scale = sum(c.error(range(len(curve.order))) for c in cases)
    left = len(curve.order)
    while left > 0:
        left -= max(1, int(step * left))
        expected = sum(c.error(curve.order[left:].tolist()) for c in cases)
        assert float(curve.errors[left]) == pytest.approx(expected, rel=1e-6, abs=1e-7 * scale)
    assert curve.order.sort().values.tolist() == list(range(len(curve.order)))
    assert bool((curve.errors.diff() <= 1e-9 * scale).all())


def test_units_that_others_stand_for_cost_nothing_and_go_first():
    """Units 1 and 3 are combinations of 0 and 2; unit 4 nobody listens to."""
    base = torch.randn(50, 3, dtype=torch.float64)
    x = torch.stack([base[:, 0], 2 * base[:, 0] - base[:, 1], base[:, 1], base.sum(1) - base[:, 2], base[:, 2]], 1)
    x = x + 1e-7 * torch.randn(50, 5, dtype=torch.float64)
    weight = torch.randn(2, 5, dtype=torch.float64)
    weight[:, 4] = 0
    case = Case(x, weight, torch.eye(2, dtype=torch.float64), torch.arange(5)[:, None])
    curve = eliminate([case.problem])
    assert float(curve.errors[2]) < 1e-9 < 1e-2 < float(curve.errors[1])


def test_of_equal_units_the_lower_index_stays_longer():
    eye = torch.eye(6, dtype=torch.float64)
    for step in (1e-9, 0.4):
        assert eliminate([Problem(eye, eye, torch.arange(6)[:, None])], step).order.tolist() == list(range(6))


def test_elimination_leaves_its_problem_alone():
    case = Case(
        torch.randn(9, 3, dtype=torch.float64),
        torch.ones(1, 3, dtype=torch.float64),
        torch.eye(1, dtype=torch.float64),
        torch.arange(3)[:, None],
    )
    problem = case.problem
    before = problem.gram.clone(), problem.metric.clone()
    first, second = eliminate([problem]), eliminate([problem])
    assert torch.equal(problem.gram, before[0])
    assert torch.equal(problem.metric, before[1])
    assert torch.equal(first.errors, second.errors)
