"""Gradients over data: what they equal, and that the model is afterwards exactly what it was."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from secateur.criteria import collect_gradients, cross_entropy, next_token_cross_entropy
from secateur.errors import ConfigError, GroupError


def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3))


def data(n=12):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 5, generator=generator), torch.randint(3, (n,), generator=generator)


def slow_gradients(model, x, y):
    model.eval()
    functional.cross_entropy(model(x), y).backward()
    return {key: parameter.grad.clone() for key, parameter in model.named_parameters()}


@pytest.mark.parametrize("sizes", [[12], [4, 4, 4], [5, 5, 2]])
def test_gradients_equal_those_of_one_large_batch(sizes):
    """The mean over samples does not depend on how they are batched, nor on a short last batch."""
    x, y = data()
    found = collect_gradients(build(), zip(x.split(sizes), y.split(sizes), strict=True))
    torch.testing.assert_close(found, slow_gradients(build(), x, y))


def test_the_model_is_left_exactly_as_it_was():
    model = build().train()
    model[1].eval()
    model[0].weight.requires_grad_(False)
    model[4].weight.grad = kept = torch.ones(3, 6)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = collect_gradients(model, [data()])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert [module.training for module in model] == [True, False, True, True, True]
    assert model.training
    assert [p.requires_grad for p in model.parameters()] == [False, True, True, True, True, True]
    assert model[4].weight.grad is kept
    assert model[0].weight.grad is None
    torch.testing.assert_close(kept, torch.ones(3, 6))
    assert found["0.weight"].abs().sum() > 0


def test_the_model_is_restored_after_an_error():
    model = build().train()
    model[0].weight.requires_grad_(False)
    with pytest.raises(ConfigError):
        collect_gradients(model, [data(), data()[0]])
    assert all(module.training for module in model.modules())
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_gradients_work_inside_no_grad(guard):
    model, (x, y) = build(), data()
    with guard():
        found = collect_gradients(model, [(x, y)])
    assert all(value.abs().sum() > 0 for key, value in found.items() if key != "0.bias")


class Tied(nn.Module):
    """Two layers that share one weight, an unused layer, and outputs in a container."""

    def __init__(self, wrap):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.unused = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False), nn.Linear(2, 2)
        self.second.weight = self.first.weight
        self.wrap = wrap

    def forward(self, values):
        return self.wrap(self.second(self.first(values).relu()))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y, None),
        lambda y: {"hidden": None, "logits": y},
        lambda y: {"anything": y},
        lambda y: SimpleNamespace(logits=y),
    ],
    ids=["tensor", "tuple", "dict", "other dict", "object"],
)
def test_outputs_are_unpacked_and_tied_weights_come_once(wrap):
    x, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    found = collect_gradients(Tied(wrap), [{"values": x, "labels": y}])
    model = Tied(lambda y: y)
    functional.cross_entropy(model(x), y).backward()
    assert set(found) == {"first.weight", "unused.weight", "unused.bias"}
    torch.testing.assert_close(found["first.weight"], model.first.weight.grad)
    assert found["unused.weight"].tolist() == [[0, 0], [0, 0]]


def test_inputs_may_be_tuples_and_dicts():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, a, b):
            return (a + b) * self.scale

    x, y = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    as_tuple = collect_gradients(Sum(), [((x, x), y)])
    as_dict = collect_gradients(Sum(), [({"a": x, "b": x}, y)])
    torch.testing.assert_close(as_tuple, as_dict)


def test_half_precision_accumulates_in_float32():
    x, y = data()
    found = collect_gradients(build().bfloat16(), [(x.bfloat16(), y)])
    assert {value.dtype for value in found.values()} == {torch.float32}


def test_a_loss_of_ones_own():
    x, y = data()
    found = collect_gradients(nn.Linear(5, 1, bias=False), [(x, y)], loss=lambda outputs, labels: outputs.mean())
    torch.testing.assert_close(found["weight"], x.mean(0, keepdim=True))


def test_segmentation_and_next_token_losses():
    logits, labels = torch.randn(2, 4, 3, 3), torch.randint(4, (2, 3, 3))
    torch.testing.assert_close(cross_entropy(logits, labels), functional.cross_entropy(logits, labels))
    tokens, logits = torch.tensor([[1, 2, 0]]), torch.randn(1, 3, 4)
    expected = -(logits[0, 0].log_softmax(0)[2] + logits[0, 1].log_softmax(0)[0]) / 2
    torch.testing.assert_close(next_token_cross_entropy(logits, tokens), expected)


@pytest.mark.parametrize(
    ("batches", "error", "text"),
    [
        ([], ConfigError, "There is no batch to take gradients from"),
        ([data()[0]], ConfigError, "Batch 0 has no labels: it is Tensor"),
        ([data(), (data()[0],)], ConfigError, r"Batch 1 has no labels: it is tuple of 1\. Gradients of a loss take"),
        ([{"input": data()[0]}], ConfigError, "Batch 0 has no labels: it is a dict with keys input"),
        ([(data()[0], None)], ConfigError, "Batch 0 has no labels"),
        ([(data()[0] * torch.nan, data()[1])], GroupError, "The loss of batch 0 is nan. Look for NaN"),
    ],
)
def test_bad_batches_are_refused(batches, error, text):
    with pytest.raises(error, match=text):
        collect_gradients(build(), batches)


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (lambda outputs, labels: outputs.sum(1), r"The loss of batch 0 is \(12,\), not a scalar tensor"),
        (lambda outputs, labels: 0.5, "The loss of batch 0 is float, not a scalar tensor"),
        (lambda outputs, labels: torch.tensor(0.5), "does not depend on the parameters"),
        (lambda outputs, labels: cross_entropy(None, labels), "The model's outputs, NoneType, hold no logits"),
        (
            lambda outputs, labels: cross_entropy(torch.zeros(2, 5, 7), torch.zeros(2, 5).long()),
            "one class per token. Pass loss=next_token_cross_entropy",
        ),
    ],
)
def test_bad_losses_are_refused(loss, text):
    with pytest.raises(ConfigError, match=text):
        collect_gradients(build(), [data()], loss)
