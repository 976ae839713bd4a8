"""Models that are hard to save, each with a function that builds it and inputs that it takes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.models import digits_cnn


class TiedAutoencoder(nn.Module):
    """Encoder and decoder layers are one module; input and output embeddings are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(self.up(x).relu()))


class PlainAttribute(nn.Module):
    """Holds a tensor that is in no state dict, and a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 16)
        self.scale = torch.linspace(0.5, 2.0, 16)
        self.register_buffer("shift", torch.linspace(-1.0, 1.0, 16), persistent=False)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.first(x).relu() * self.scale + self.shift
        return {"logits": self.last(hidden), "argmax": self.last(hidden).argmax(-1)}


@dataclass(frozen=True)
class Case:
    """A model with its inputs."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Any
    source: str | None = None

    def pruned(self) -> tuple[nn.Module, secateur.Plan]:
        """Give the model with other weights than a fresh one has, pruned to half its width, and the plan."""
        torch.manual_seed(1)
        model = self.build()
        for buffer in model.buffers():
            if buffer.is_floating_point() and "running" in str(buffer):
                buffer.uniform_(0.5, 1.5)
        plan = secateur.plan(model, self.inputs, secateur.Budget(width=0.5))
        return secateur.apply(model, plan), plan

    def __str__(self) -> str:
        return self.name


def sequential() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))


CASES = [
    Case("sequential", sequential, torch.ones(1, 3)),
    Case("cnn", lambda: digits_cnn(width=8), torch.ones(1, 1, 8, 8), "builtin:digits_cnn?width=8"),
    Case("tied", TiedAutoencoder, torch.tensor([[0, 3, 10]])),
    Case("plain attribute", PlainAttribute, {"x": torch.ones(2, 6)}),
    Case("attention", lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), torch.ones(1, 5, 16)),
]


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture
def cnn() -> Case:
    return CASES[1]


@pytest.fixture
def tied() -> Case:
    return CASES[2]
