"""Compress a model and data of your own: an attention block on made-up sequences, with labels.

Run: python examples/your_own_model.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import secateur
from secateur.train import TrainConfig, fit_


class Classifier(nn.Module):
    """Says which of 4 patterns is hidden in a noisy sequence. Its head count is a number in the code."""

    def __init__(self, width: int = 32, n_heads: int = 4) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.embed = nn.Linear(6, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)  # (B, L, width)
        batch, length, _ = x.shape
        q, k, v = (t.view(batch, length, self.n_heads, -1).transpose(1, 2) for t in self.qkv(x).chunk(3, dim=-1))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        x = x + self.mlp(x)
        return self.head(x.mean(1))


def made_up_data(n_samples: int = 600) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(4, 10, 6, generator=generator)
    labels = torch.randint(0, 4, (n_samples,), generator=generator)
    return TensorDataset(patterns[labels] + torch.randn(n_samples, 10, 6, generator=generator), labels)


def main(folder: Path) -> None:
    torch.manual_seed(0)
    data, model = made_up_data(), Classifier()
    train = TrainConfig(epochs=8, lr=3e-3, num_threads=1)
    fit_(model, data, config=train)
    config = secateur.CompressConfig(finetune=train)
    small = secateur.compress(model, data, budget=secateur.Budget(macs=0.5), config=config)
    print(small.plan)
    print(small.report)
    saved = secateur.save(small.model, folder / "small", plan=small.plan)
    again = secateur.load(saved, Classifier)
    print(f"loaded: {sum(p.numel() for p in again.parameters()):,} parameters, {again.n_heads} heads")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as there:
            main(Path(there))
