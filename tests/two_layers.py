"""Two linear layers, and the plan that halves what lies between them."""

from __future__ import annotations

import torch
from torch import nn

import secateur
from secateur import Budget, Plan, PruneConfig

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
