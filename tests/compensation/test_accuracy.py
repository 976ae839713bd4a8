"""A small accuracy table: a digits CNN at half its multiply-adds, without training, by four ways to choose."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur import Budget, PruneConfig
from secateur.allocate import Lagrangian
from secateur.compensation import CompensateConfig, ReconstructConfig, compensate_
from secateur.criteria import Elimination
from secateur.data.sources import ReadConfig, read_digits
from secateur.models import digits_cnn


def digits() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """1,197 samples to train and calibrate on, 600 to count hits on."""
    x, y = read_digits("", ReadConfig()).train
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return (x[order[600:]], y[order[600:]]), (x[order[:600]], y[order[:600]])


def trained(x: Tensor, y: Tensor, epochs: int = 6) -> nn.Module:
    torch.manual_seed(0)
    model = digits_cnn(width=16)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return model.eval()


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.slow
def test_half_the_cost_without_training():
    """Solved for again, the network is nearly as good as before; what scores alone leave is not."""
    train, test = digits()
    model = trained(*train)
    batches = list(train[0][:1024].split(64))
    labelled = list(zip(batches, train[1].split(64), strict=False))
    budget, found = Budget(macs=0.5), {"dense": accuracy(model, *test)}
    for name in ("random", "l2", "taylor"):
        plan = secateur.plan(model, batches[0], budget, PruneConfig(criterion=name), data=labelled)
        assert plan.cost_after.macs <= 0.5 * plan.cost_before.macs
        found[name] = accuracy(secateur.apply(model, plan), *test)
    config = PruneConfig(criterion=Elimination(), method=Lagrangian())
    plan = secateur.plan(model, batches[0], budget, config, data=batches)
    assert 0.48 * plan.cost_before.macs <= plan.cost_after.macs <= 0.5 * plan.cost_before.macs
    for name, reconstruct in (("closed form", None), ("reconstructed", ReconstructConfig(epochs=5))):
        small = secateur.apply(model, plan)
        compensate_(model, small, plan, batches, CompensateConfig(reconstruct=reconstruct))
        found[name] = accuracy(small, *test)
    assert found["dense"] > 0.97, found
    assert found["closed form"] > found["dense"] - 0.05, found
    assert found["reconstructed"] > found["dense"] - 0.03, found
    assert found["reconstructed"] > max(found[name] for name in ("random", "l2", "taylor")) + 0.3, found
