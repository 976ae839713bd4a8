"""A small convolutional network, inputs for it, and training towards targets that mean nothing."""

from __future__ import annotations

import torch
from torch import nn

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
BATCHES = list(X.split(4))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def losses_in_training(model: nn.Module, n_steps: int) -> list[float]:
    """The loss at each step; the model is trained in place."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    target = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))
    losses = []
    for _ in range(n_steps):
        loss = (model(X) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses
