"""Model classes that once failed, each in a tiny version of what it failed on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from secateur import Budget, PruneConfig


class LowFormerAttention(nn.Module):
    """Values wider than keys: torch has a kernel for that, and another one once they are equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 32)
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def test_attention_is_recorded_alike_for_every_width() -> None:
    torch.manual_seed(0)
    model, x = LowFormerAttention(), torch.randn(2, 5, 6)
    plan = secateur.plan(model, x, Budget(width=0.5), PruneConfig(ignore=("q", "k")))
    small = secateur.apply(model, plan)
    assert small.v.out_features == 16
