"""What a capture takes and gives, and what is said when it can't."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

import secateur
from secateur.capture import capture
from secateur.errors import CaptureError
from secateur.tensors import tensors_in

from .two_layers import Forward, X, mlp


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
    with pytest.raises(CaptureError, match=r"Forward failed in 'the model' \(test_capture.py:\d+\).*shape \[2, 6\]"):
        secateur.trace(model, X)
    with pytest.raises(CaptureError, match="in '0'"):
        secateur.trace(mlp(), torch.zeros(2, 7))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_what_torch_reserves_for_itself_stays_off_the_record():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    names = [op.target.name() for op in capture(net, torch.zeros(1, 3, 5, 5)).ops]
    assert names == ["aten::convolution", "aten::native_batch_norm", "aten::relu"]


def test_a_batch_norm_without_weights_on_an_input():
    """All that it reads is known, so its values are worked out beside the record."""
    net = nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2))
    assert [(g.name, g.size) for g in secateur.trace(net, X).prunable] == [("1 features", 4)]


class Grown(nn.Module):
    """Starts from a tensor without elements, and appends to it."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, n) for n in (4, 8))
        self.head = nn.Linear(12, 2)

    def forward(self, x):
        found = torch.empty(0)
        for layer in self.layers:
            found = torch.cat([found, layer(x)], -1)
        return self.head(found)


@pytest.mark.parametrize("is_fake", [True, False])
def test_code_may_go_on_from_a_tensor_without_elements(is_fake):
    graph = secateur.trace(Grown(), X, is_fake=is_fake)
    assert [(g.name, g.size) for g in graph.prunable] == [("layers.0 features", 4), ("layers.1 features", 8)]
    plan = secateur.plan(model := Grown(), X, secateur.Budget(width=0.5), secateur.PruneConfig(criterion="random"))
    assert secateur.apply(model, plan).head.weight.shape == (2, 6)  # verified on the way


def test_training_flags_come_back_after_a_failure():
    model = Forward(lambda y: y + torch.zeros(5))
    model.last.eval()
    with pytest.raises(CaptureError):
        secateur.trace(model, X)
    assert (model.training, model.first.training, model.last.training) == (True, True, False)
    assert torch.backends.mha.get_fastpath_enabled()


class _Hooked(nn.Module):
    """Transformers' way to collect hidden states: hooks are installed at the first call, and a flag remembers it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)
        self.is_hooked = False
        self.seen = set()
        self.size = self.stride = [2, 2]

    def forward(self, x):
        found = []
        if not self.is_hooked:
            self.layer.register_forward_hook(lambda module, args, out: self.found.append(out))
            self.is_hooked = True
        self.found = found
        self.seen.add("first")
        self.layer(x)
        return torch.stack(found)


def test_hooks_of_a_first_forward_do_not_stay_without_what_remembers_them():
    model = _Hooked()
    assert secateur.trace(model, X).trace.outputs[0].shape == (1, *X.shape)
    assert not model.layer._forward_hooks
    assert not model.seen
    assert model.size is model.stride
    assert model.size == [2, 2]
    assert model(X).shape == (1, *X.shape)


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


def test_an_operator_without_a_rule_keeps_its_axes_and_is_reported():
    graph = secateur.trace(Forward(lambda y: torch.linalg.qr(y.double())[0].float() @ y[:2] * 1.0, width=8), X)
    assert graph.uncounted
    assert "linalg_qr" in graph.uncounted[0]
    assert all(g.frozen_reason for g in graph.groups)
    assert "uncounted operators" in str(graph)
