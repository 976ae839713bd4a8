"""Sparse activations: what they let through, how their numbers are measured, and that the edit replays."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur.edits import Edits
from secateur.errors import ConfigError, DataError, PlanError
from secateur.sparse_activations import (
    ACTIVATIONS,
    Activation,
    KWinners,
    Relu,
    Threshold,
    Thresholded,
    Winners,
    activation_sparsity,
    find_activations,
)
from secateur.steps import STEPS, Activate, Context, Done, Step

CASES: list[Activation] = [
    Relu(),
    Threshold(sparsity=0.7),
    Threshold(value=0.25),
    KWinners(sparsity=0.75),
    KWinners(sparsity=0.5, axis=1),
]
X = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    """One activation module under two names, one by function, and a gate that is none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.down, self.gate = nn.Linear(8, 16), nn.Linear(16, 8), nn.Sigmoid()
        self.act = self.same = nn.GELU()
        self.last = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.down(self.same(self.act(self.up(x)))).relu() * self.gate(x))


def context(batches: list[Any]) -> Context:
    return Context(dense=Mlp(), inputs=lambda n: batches[0][:n], calibration=lambda: batches)


def run(step: Activate, batches: list[Any] | None = None) -> Done:
    return step.run(Mlp().eval(), context(list(X.split(2)) if batches is None else batches))


def text_of(case: Activation) -> str:
    """What a recipe says."""
    settings = "&".join(f"{key}={value!r}" for key, value in asdict(case).items())
    return f"{case.name}?{settings}" if settings else case.name


def test_every_registered_activation_has_a_case() -> None:
    assert {type(case) for case in CASES} == set(ACTIVATIONS.values())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_edit_replays_and_the_report_is_what_is_there(case: Activation) -> None:
    done = run(Activate(function=text_of(case)))
    assert done.edit is not None
    edits = Edits.from_json(Edits().then(done.edit).to_json())
    assert edits == Edits().then(done.edit)
    again = edits.replay(Mlp().eval())
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(X), done.model(X))
    assert done.model.act is done.model.same
    facts = done.facts["activation_sparsity"]
    assert list(facts) == ["act", "last"] == list(find_activations(Mlp()))
    with torch.no_grad():
        y = done.model.act(done.model.up(X))
        y = torch.cat([y, done.model.act(y)])  # the module is called twice
    assert facts["act"]["after"] == pytest.approx(float((y == 0).float().mean()))
    assert facts["act"]["after"] > facts["act"]["before"]


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=12), st.floats(0, 0.99), st.floats(0, 6))
@settings(deadline=None)
def test_what_goes_through_is_what_a_sort_says(values: list[int], sparsity: float, threshold: float) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    cut = Thresholded(nn.Identity(), threshold)(x).tolist()
    assert cut == [v if abs(v) > threshold else 0 for v in values]
    k = max(1, round((1 - sparsity) * len(values)))
    least = sorted(map(abs, values), reverse=True)[k - 1]
    assert Winners(nn.Identity(), 1 - sparsity, -1)(x).tolist() == [v if abs(v) >= least else 0 for v in values]
    fitted = Threshold(sparsity=sparsity).fitted(x)
    assert isinstance(fitted, Threshold)
    left = fitted.module(nn.Identity())(x)
    assert int((left == 0).sum()) >= round(sparsity * len(values))  # more only among equal ones


def test_a_threshold_gives_the_sparsity_asked_for() -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU())
    made = Activate(function="threshold?sparsity=0.8").run(model, context([X])).model
    assert activation_sparsity(made, [X])["1"] == pytest.approx(0.8, abs=1e-3)


def test_a_width_whose_units_compete_is_not_pruned() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))
    made = Activate(function="k_winners?sparsity=0.5").run(model, context([X])).model
    with pytest.raises(PlanError, match="kthvalue"):
        secateur.plan(made, X, secateur.Budget(width=0.5))
    cut = Activate(function="threshold").run(model, context([X])).model
    assert secateur.apply(cut, secateur.plan(cut, X, secateur.Budget(width=0.5)))[0].out_features == 8


def test_gradients_flow_through_what_is_left() -> None:
    for module in (Thresholded(nn.Identity(), 0.5), Winners(nn.Identity(), 0.5, -1)):
        x = torch.tensor([2.0, -1.0, 0.1, 0.2], requires_grad=True)
        module(x).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [1, 1, 0, 0]


def test_what_is_left_alone_and_what_is_missing_is_said() -> None:
    assert run(Activate(ignore=("la*",))).skipped == (("last", "ignored"),)
    with pytest.raises(ConfigError, match="Mlp has no activation modules to replace"):
        run(Activate(ignore=("*",)))
    with pytest.raises(DataError, match="'threshold' is measured on data"):
        run(Activate(function="threshold"), [])
    with pytest.raises(ConfigError, match=r"sparsity=1\.0 is outside"):
        Activate(function="k_winners?sparsity=1.0")
    edit = run(Activate()).edit
    assert edit is not None
    with pytest.raises(PlanError, match="no activation 'act'"):
        edit.replay(nn.Sequential(nn.ReLU()))
    with pytest.raises(PlanError, match="not a list of edits"):
        Edits.from_json(Edits().then(edit).to_json().replace('"relu"', '"softplus"'))


def test_the_step_keeps_the_contract() -> None:
    assert STEPS["activate"] is Activate
    assert isinstance(Activate(), Step)
    assert run(Activate()).notes[0].startswith("2 activations: 31.0 % zeros before, 56.2 % after")
