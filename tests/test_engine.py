"""Surgery and its proof by example: what shrinks, what is set along, what is refused before anything changes."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur.errors import PlanError, VerifyError
from secateur.surgery import get_number, set_number

from .two_layers import Forward, X, half, mlp


@pytest.mark.parametrize(
    "between",
    [lambda y: F.relu(y).unsqueeze_(1).squeeze_(1), lambda y: F.relu(y).t_().t()],
    ids=["unsqueeze_", "t_"],
)
def test_shapes_that_change_in_place_are_followed(between):
    model = Forward(between).double()
    small = secateur.apply(model, half(model, X.double()), inputs=X.double())
    assert small.first.out_features == 4


class Reader(nn.Module):
    """A recurrent layer between others."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.up, self.rnn = nn.Linear(6, 8), kind(8, 10, batch_first=True)
        self.mid, self.out = nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(torch.relu(self.mid(self.rnn(torch.relu(self.up(x)))[0])))


RECURRENT = [nn.LSTM, nn.GRU, nn.RNN]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # torch, at its first recurrent layer
@pytest.mark.parametrize("kind", RECURRENT)
def test_recurrent_layers_shrink_or_say_why_not(kind):
    model, x = Reader(kind).double(), torch.randn(2, 5, 6).double()
    plan = half(model, x)
    small = secateur.apply(model, plan, inputs=x)
    assert small.mid.out_features == 4
    why = [reason for name, reason in plan.skipped if name.startswith("rnn")]
    assert all(why)
    assert why or small.rnn.hidden_size < 10
    assert small.rnn.weight_hh_l0.shape[1] == small.rnn.hidden_size


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("kind", RECURRENT)
def test_what_a_recurrent_layer_reads_shrinks(kind):
    model, x = Reader(kind).double(), torch.randn(2, 5, 6).double()
    small = secateur.apply(model, half(model, x), inputs=x)
    assert (small.up.out_features, small.rnn.input_size) == (4, 4)


def test_parametrised_weights_are_cut_along():
    model = Forward(F.relu).double()
    nn.utils.parametrizations.weight_norm(model.first)
    plan = half(model, X.double())
    small = secateur.apply(model, plan, inputs=X.double())
    assert small.first.weight.shape == (4, 6)
    assert small.first.parametrizations.weight.original0.shape == (4, 1)


def test_a_plan_for_another_architecture_lists_every_difference():
    found = r"does not fit Sequential: '0.weight' is \(16, 6\), the plan expects \(8, 6\).*'2.weight'"
    with pytest.raises(PlanError, match=found):
        secateur.apply(mlp(16), half(mlp()))
    with pytest.raises(PlanError, match=r"'0.weight' is missing"):
        secateur.apply(nn.ReLU(), half(mlp()))


@pytest.mark.parametrize("change", [{"tensors": "0.bias"}, {"tensors": "2.weight"}])
def test_a_plan_that_forgets_a_tensor_is_not_carried_out(change):
    model, plan = mlp(), half(mlp())
    broken = replace(plan, tensors={k: v for k, v in plan.tensors.items() if k != change["tensors"]})
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises((VerifyError, PlanError)):
        secateur.apply_(model, broken)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_tampered_model_fails_its_proof():
    model = mlp()
    plan = half(model)
    small = secateur.apply(model, plan)
    with torch.no_grad():
        small[0].weight[0, 0] += 1
    report = secateur.verify(model, small, plan, X)
    assert not report.is_ok
    assert "NOT verified" in str(report)


def test_verification_says_when_it_has_no_numbers():
    model = mlp()
    plan = half(model)
    report = secateur.verify(model.to("meta"), secateur.apply(model, plan, verify=False), plan, X)
    assert report.is_ok
    assert report.max_difference is None
    assert "meta device" in str(report)


def test_a_model_that_holds_a_lock_gets_a_clear_error():
    model = mlp()
    model.lock = threading.Lock()
    with pytest.raises(PlanError, match="Sequential can't be copied"):
        half(model)


def test_optimizer_state_of_another_shape_is_refused_before_anything_changes():
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight]["factored"] = torch.zeros(8)
    with pytest.raises(PlanError, match=r"keeps 'factored' of '0.weight'"):
        secateur.apply_(model, half(model), optimizer=optimizer)
    assert model[0].weight.shape == (8, 6)


def test_numbers_in_tuples_configs_and_lists_are_set():
    class Config:
        hidden = 8

    model = mlp()
    model.sizes, model.listed, model.config = (6, 8), [6, 8], Config()
    for path, old in (("sizes[1]", 8), ("listed[0]", 6), ("config.hidden", 8)):
        assert get_number(model, "", path) == old
        set_number(model, "", path, 5)
        assert get_number(model, "", path) == 5
    assert (model.sizes, model.listed) == ((6, 5), [5, 8])
    with pytest.raises(PlanError, match=r"has no '.gone'"):
        get_number(model, "", "gone")


def test_frozen_parameters_stay_frozen_and_the_mode_stays():
    model = mlp().eval()
    model[0].weight.requires_grad_(False)
    small = secateur.apply(model, half(model))
    assert not small[0].weight.requires_grad
    assert small[2].weight.requires_grad
    assert not small.training


def test_inference_mode_around_the_calls_changes_nothing() -> None:
    """In that mode composite operators are not taken apart, and tensors made in it can't be trained."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    plan = secateur.plan(net, x, secateur.Budget(width=0.5))
    with torch.inference_mode():
        assert secateur.trace(net, x).cost() == secateur.trace(net, torch.zeros(1, 3, 8, 8)).cost() == plan.cost_before
        again = secateur.plan(net, x, secateur.Budget(width=0.5))
        small = secateur.apply(net, again)
        assert secateur.verify(net, small, again, x).is_ok
    assert again == plan
    small(x).sum().backward()


class Padded(nn.Module):
    """A shortcut of zero channels (ResNets for CIFAR, option A), their number an attribute, or a literal."""

    def __init__(self, is_literal: bool) -> None:
        super().__init__()
        self.stem, self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 2, 1)
        self.is_literal, self.n_zeros = is_literal, 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        n = 4 if self.is_literal else self.n_zeros
        return self.out(F.relu(self.conv(x) + F.pad(x, (0, 0, 0, 0, n, n))))


@pytest.mark.parametrize("is_literal", [False, True])
def test_zero_channels_of_a_shortcut_shrink_where_their_number_can_be_set(is_literal):
    model, x = Padded(is_literal).double(), torch.randn(2, 3, 4, 4).double()
    plan = half(model, x)
    small = secateur.apply(model, plan, inputs=x)
    assert small.stem.out_channels == 4
    zeros = [g for g in plan.groups if g.name.startswith("conv channels")]
    assert [len(g.keep) for g in zeros] == ([] if is_literal else [2, 2])
    assert small.conv.out_channels == (12 if is_literal else 8)
    assert small.n_zeros == (4 if is_literal else 2)
    reasons = [reason for name, reason in plan.skipped if name.startswith("conv channels")]
    assert all("test_engine.py" in reason for reason in reasons)
    assert len(reasons) == 2 * is_literal
