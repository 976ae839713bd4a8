"""Curves of a transformer: gradients go through attention, and what is measured is the network with other weights."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.attention import ATTENTION
from secateur.compensation.curves import error_curves
from secateur.criteria.elimination import Elimination

WIDTH, HEADS, HIDDEN = 12, 3, 16


class Block(nn.Module):
    """Attention and an MLP on a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in self.qkv)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(x)))


@pytest.fixture
def batches() -> list[Tensor]:
    return list(torch.randn(32, 5, WIDTH, generator=torch.Generator().manual_seed(0)).split(8))


def test_attention_has_torchs_gradients() -> None:
    q, k, v = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found = torch.autograd.grad(ATTENTION(q, k, v).square().sum(), (q, k, v))
    weights = (q @ k.mT / math.sqrt(4)).softmax(-1)
    for a, b in zip(found, torch.autograd.grad((weights @ v).square().sum(), (q, k, v)), strict=True):
        torch.testing.assert_close(a, b)


def test_every_level_is_measured_with_its_own_weights(batches: list[Tensor]) -> None:
    """At each level the curve is the distance of a network whose reader keeps the best units, the rest at zero."""
    torch.manual_seed(0)
    model = Block().eval()
    level = 0.5
    config = Elimination(distance="mse", levels=(level,), n_probe=32)
    curve = error_curves(model, batches, config).curves["up features"]
    k = round(level * HIDDEN)
    x = torch.cat(batches)
    with torch.no_grad():
        dense = model(x)
        seen: list[Tensor] = []
        handle = model.down.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        model(x)
        handle.remove()
        phi = seen[0].flatten(0, 1).double()
        gram = phi.T @ phi
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(HIDDEN, dtype=torch.float64)
        stay = curve.order[:k]
        weight = model.down.weight.double()
        solved = torch.zeros_like(weight)
        solved[:, stay] = torch.linalg.solve(gram[stay][:, stay], (weight @ gram[:, stay]).T).T
        model.down.weight.copy_(solved)
        pairs = zip(batches, dense.double().split(8), strict=True)
        found = [(model(b) - d).square().mean() / d.var(correction=0) for b, d in pairs]
    assert float(curve.errors[k]) == pytest.approx(float(torch.stack(found).mean()), rel=1e-3)
    assert float(curve.errors[k]) > 0
