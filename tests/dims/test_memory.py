"""Peak activation memory from the record against the storages that its operators really hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateur
from secateur.capture import capture
from secateur.graph import trace
from secateur.measure import size_bytes
from secateur.models import cifar_resnet20, digits_cnn
from secateur.record import Value
from secateur.tensors import named_tensors


def held_bytes(model: nn.Module, x: Tensor) -> int:
    """Run the record operator by operator on real tensors, dropping each after its last use; the largest sum held.

    What shares memory is asked of the storages, not of the operators' schemas.
    """
    record = capture(model.eval(), x)
    own = named_tensors(model)
    weights = {t.untyped_storage()._cdata for t in own.values()}
    found = {value.index: own[key] for key, value in record.tensors.items()}
    kept = {*found, *(v.index for v in (*record.inputs, *record.outputs))}
    found[record.inputs[0].index] = x
    uses = [
        [v.index for v in pytree.tree_leaves((op.args, op.kwargs, op.outputs)) if isinstance(v, Value)]
        for op in record.ops
    ]
    peak = 0
    for i, op in enumerate(record.ops):
        args, kwargs = pytree.tree_map_only(Value, lambda v, now=found: now[v.index], (op.args, op.kwargs))
        out = op.target(*args, **kwargs)
        outs = out if isinstance(out, tuple | list) else (out,)
        found.update({v.index: t for v, t in zip(op.outputs, outs, strict=True) if v is not None})
        del args, kwargs, out, outs
        storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in found.values()}
        peak = max(peak, sum(n for where, n in storages.items() if where not in weights))
        later = {index for use in uses[i + 1 :] for index in use}
        found = {index: t for index, t in found.items() if index in kept or index in later}
    return peak


class Branches(nn.Module):
    """A value that lives long, views of it, an operator in place, one with two outputs, an output that is a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        long = self.a(x)
        left, right = long.chunk(2, 1)
        y = self.b(torch.cat([right, left], 1)).relu_()
        y = self.c(torch.tanh(y) + long.t().t())
        best, _ = y.max(1)
        return best, y.t()


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 64), nn.Linear(64, 2)), (5, 6)),
    "branches": (Branches, (5, 6)),
    "digits": (digits_cnn, (3, 1, 8, 8)),
    "resnet": (cifar_resnet20, (2, 3, 32, 32)),
    "half": (lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)).bfloat16(), (5, 6)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), (2, 5, 16)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("width", [1.0, 0.5])
def test_peak_is_what_the_operators_hold(name, width):
    build, shape = CASES[name]
    model = build()
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    made = secateur.plan(model, x, secateur.Budget(width=width))
    assert made.cost_after.activation_bytes == held_bytes(secateur.apply(model, made), x)


@pytest.mark.parametrize("name", CASES)
def test_size_is_that_of_the_state(name):
    build, shape = CASES[name]
    model = build()
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    made = secateur.plan(model, x, secateur.Budget(width=0.5))
    for net, cost in ((model, made.cost_before), (secateur.apply(model, made), made.cost_after)):
        assert cost.size_bytes == sum(t.nbytes for t in net.state_dict().values())
        assert 0 < size_bytes(net) - cost.size_bytes < 150 * len(net.state_dict()) + 16  # a file's header


def test_activations_grow_with_the_batch_and_the_size_does_not():
    one, four = (trace(digits_cnn(), torch.zeros(n, 1, 8, 8)).cost() for n in (1, 4))
    assert (four.activation_bytes, four.size_bytes) == (4 * one.activation_bytes, one.size_bytes)
