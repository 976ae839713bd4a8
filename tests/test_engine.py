"""Examples of capture, plans, surgery and input specs: what goes in, what comes out, what is said when it can't."""

from __future__ import annotations

import json
import resource
import threading
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import secateur
from secateur import Budget, Plan, PruneConfig
from secateur.capture import capture
from secateur.errors import CaptureError, PlanError, VerifyError
from secateur.plans import from_runs, to_runs
from secateur.specs import from_spec, to_spec
from secateur.surgery import get_number, set_number
from secateur.tensors import as_call, tensors_in

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


def mlp(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 3))


def half(model: nn.Module, inputs=X, **config) -> Plan:
    return secateur.plan(model, inputs, Budget(width=0.5), PruneConfig(**config))


class Forward(nn.Module):
    """Two linear layers with a function between them."""

    def __init__(self, between, width: int = 8, out: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, width), nn.Linear(out or width, 3)
        self.between = between

    def forward(self, x):
        return self.last(self.between(self.first(x)))


# capture


def test_a_model_far_larger_than_memory_is_traced_and_planned_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**6, 10**6), nn.ReLU(), nn.Linear(10**6, 10**6))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    graph = secateur.trace(model, torch.empty(1, 10**6, device="meta"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB
    assert [(g.name, g.size) for g in graph.prunable] == [("0 features", 10**6)]
    assert graph.cost().macs == 2 * 10**12


def test_what_is_said_of_a_model_without_parameters():
    with pytest.raises(CaptureError, match="ReLU has no parameters, so there is nothing to make smaller"):
        secateur.trace(nn.ReLU(), X)


def test_a_failing_forward_is_named_by_module_and_line():
    model = Forward(lambda y: y + torch.zeros(5))
    with pytest.raises(CaptureError, match=r"Forward failed in 'the model' \(test_engine.py:\d+\).*shape \[2, 6\]"):
        secateur.trace(model, X)
    with pytest.raises(CaptureError, match="in '0'"):
        secateur.trace(mlp(), torch.zeros(2, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_training_flags_come_back_after_a_failure():
    model = Forward(lambda y: y + torch.zeros(5))
    model.last.eval()
    with pytest.raises(CaptureError):
        secateur.trace(model, X)
    assert (model.training, model.first.training, model.last.training) == (True, True, False)
    assert torch.backends.mha.get_fastpath_enabled()


def test_tied_tensors_are_one_value():
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    trace = capture(model, X)
    assert trace.tied == {"1.weight": "0.weight"}
    assert "1.weight" not in trace.tensors


def test_tensors_in_finds_what_hides():
    class Holder:
        def __init__(self) -> None:
            self.x, self.name = X, "no tensor"

    assert len(tensors_in({"a": [X, (X, None, "text")], "b": Holder(), "c": {X}})) == 4


@pytest.mark.parametrize(
    ("inputs", "call"),
    [(X, ((X,), {})), ((X, 1), ((X, 1), {})), ([X], ((X,), {})), ({"x": X}, ((), {"x": X}))],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_inputs_come_in_three_forms(inputs, call):
    assert str(as_call(inputs)) == str(call)


def test_an_operator_without_a_rule_keeps_its_axes_and_is_reported():
    graph = secateur.trace(Forward(lambda y: torch.linalg.qr(y.double())[0].float() @ y[:2] * 1.0, width=8), X)
    assert graph.uncounted
    assert "linalg_qr" in graph.uncounted[0]
    assert all(g.frozen_reason for g in graph.groups)
    assert "uncounted operators" in str(graph)


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


# plans


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


# surgery


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


def test_ignored_modules_keep_their_shapes():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    plan = half(model, ignore=("0",))
    assert "0.weight" not in plan.tensors
    assert any(reason == "ignore pattern '0' matches '0.weight'" for _, reason in plan.skipped)
    with pytest.raises(PlanError, match="Nothing in this model can be pruned"):
        half(model, ignore=("*",))


# specs


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


def test_inputs_survive_as_data():
    inputs = {"ids": torch.tensor([[3, 9]]), "mask": torch.ones(1, 2, dtype=torch.bool), "more": [X, 2, None, "text"]}
    spec = json.loads(json.dumps(to_spec(inputs)))
    made = from_spec(spec)
    assert to_spec(made).keys() == inputs.keys()
    assert made["ids"].max() < 10
    assert (made["ids"].dtype, made["mask"].dtype, made["more"][0].shape) == (torch.int64, torch.bool, X.shape)
    assert made["more"][1:] == (2, None, "text")
    assert torch.equal(from_spec(spec)["more"][0], made["more"][0])


def test_inputs_that_are_no_data_are_refused():
    with pytest.raises(PlanError, match=r"An example input of type Lock|lock can't be written down"):
        to_spec((X, threading.Lock()))


def test_a_mask_of_ones_stays_one_in_the_proof():
    """Hugging Face's Llama takes another attention path where a mask hides something; this one hides nothing."""
    mask = {"x": torch.randn(2, 6), "mask": torch.ones(2, 6, dtype=torch.long), "ids": torch.tensor([3, 7])}
    again = from_spec(to_spec(mask))
    assert torch.equal(again["mask"], mask["mask"])
    assert again["ids"].min() >= 3
    assert again["ids"].max() <= 7


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
