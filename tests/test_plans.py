"""Plans as data: what they print, their JSON, what they note, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur import Plan
from secateur.errors import PlanError
from secateur.plans import from_runs, to_runs

from .two_layers import half, mlp


def test_a_plan_prints_what_it_does():
    text = str(half(mlp()))
    assert "0 features  features  8 → 4" in text
    assert "parameters 83 → 43" in text


def test_a_plan_is_exact_json():
    plan = half(mlp())
    data = json.loads(plan.to_json())
    assert (data["schema"], data["kind"]) == (1, "secateur.plan")
    assert Plan.from_json(plan.to_json()) == plan


def _edited(**changes) -> str:
    return json.dumps({**json.loads(half(mlp()).to_json()), **changes})


GROUP = {"name": "0 features", "kind": "features", "size": 8, "keep": [[0, 4]], "normalised_by": []}


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("[]", id="list"),
        pytest.param("null", id="null"),
        pytest.param('{"schema": 1}', id="bare"),
        pytest.param(_edited(schema=2), id="newer schema"),
        pytest.param(_edited(kind="other"), id="foreign kind"),
        pytest.param(_edited(extra=1), id="unknown field"),
        pytest.param(_edited(groups=[{**GROUP, "keep": []}]), id="keeps nothing"),
        pytest.param(_edited(groups=[{**GROUP, "keep": [[0, 9]]}]), id="beyond the width"),
        pytest.param(_edited(groups=[{**GROUP, "keep": [[4, 6], [0, 2]]}]), id="unsorted"),
        pytest.param(_edited(groups=[{**GROUP, "keep": [[0, 3], [2, 4]]}]), id="overlapping"),
        pytest.param(_edited(groups=[{**GROUP, "keep": [[-2, 4]]}]), id="negative"),
        pytest.param(_edited(groups=[]), id="tensors without a group"),
        pytest.param(_edited(tensors={"0.weight": [{"sum": ["0 features"]}, 6]}), id="no expression"),
        pytest.param(_edited(cost_before={"params": 1}), id="half a cost"),
    ],
)
def test_what_is_not_exactly_a_plan_is_refused(text):
    with pytest.raises(PlanError, match="not a plan of schema 1"):
        Plan.from_json(text)


@pytest.mark.parametrize("keep", [(), (0,), (0, 1, 2, 5, 7, 8), (3, 4, 9)])
def test_runs_round_trip(keep):
    assert from_runs(to_runs(keep)) == keep


def test_plans_compose_in_order_only():
    model = mlp(16)
    first = half(model)
    second = half(secateur.apply(model, first))
    assert len(secateur.compose(first, second).groups[0].keep) == 4
    with pytest.raises(PlanError, match="Make the second plan on the model that the first one gave"):
        secateur.compose(second, second)


def test_a_plan_replays_on_another_checkpoint():
    plan = half(mlp())
    other = mlp()
    nn.init.normal_(other[0].weight)
    small = secateur.apply(other, Plan.from_json(plan.to_json()))
    assert torch.equal(small[0].weight, other[0].weight[list(plan.groups[0].keep)])


def test_ignored_modules_keep_their_shapes():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = half(model, ignore=("0",))
    assert "0.weight" not in plan.tensors
    assert any(reason == "ignore pattern '0' matches '0.weight'" for _, reason in plan.skipped)
    with pytest.raises(PlanError, match="Nothing in this model can be pruned"):
        half(model, ignore=("*",))


class Described(nn.Module):
    """Says how wide it is, for nobody."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.n_experts, self.kernel_size = 8, 8
        self.weight, self.last = nn.Parameter(torch.randn(8, 6)), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(torch.relu(F.linear(x, self.weight)))


def test_numbers_that_no_operator_reads_are_named():
    plan = half(Described())
    assert plan.notes == ("no operator reads these numbers, which equal a width that shrinks; they stay: n_experts",)
    assert half(mlp()).notes == ()


class Auxiliary(nn.Module):
    """A head for training, whose forward needs labels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.extra = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x, labels=None):
        y = torch.relu(self.first(x))
        if self.training:
            return self.extra(y) - labels.float()
        return self.last(y)


def test_a_training_forward_that_fails_is_noted():
    (note,) = half(Auxiliary()).notes
    assert note.startswith("what only training uses is kept whole, since its forward can't be captured")
    assert "'NoneType' object has no attribute 'float'" in note
