"""Fewer layers, fewer ranks, fewer values: in a row, with pruning and fine-tuning between, saved and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.allocate import Budget
from secateur.coding import codable, codings_of
from secateur.compression import CompressConfig, MeasureConfig, run_steps
from secateur.steps import Drop, Factorize, Share, Sparsify
from secateur.steps.finetune import Finetune
from secateur.steps.prune import Prune
from secateur.train.config import TrainConfig


class Stack(nn.Module):
    """A stem, residual blocks of two layers, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head = nn.Linear(6, 24), nn.Linear(24, 2)
        self.blocks = nn.ModuleList(Residual(24, 48) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


class Residual(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.inner(x)
        return out


@pytest.mark.slow
def test_all_in_a_row(tmp_path: Path) -> None:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > x[:, 1]).long()
    steps = [
        Drop(n=1, by="kl"),
        Factorize(params=0.6),
        Prune(budget=Budget(macs=0.7)),
        Sparsify(sparsity=0.5),
        Share(n_values=8, is_global=True),
        Finetune(train=TrainConfig(epochs=2, lr=0.01, batch_size=32)),
    ]
    config = CompressConfig(measure=MeasureConfig(repeats=3, max_seconds=0.1, n_threads=1))
    done = run_steps(Stack().eval(), x, steps, labels=y, config=config, progress=False)
    assert [edit.kind for edit in done.edits.steps] == ["drop", "factorize", "prune", "code", "share"]
    sizes = [stage.size_bytes for stage in done.report.stages().values()]
    assert sizes == sorted(sizes, reverse=True)
    folder = secateur.save(done.model, tmp_path / "small", plan=done.edits)
    again = secateur.load(folder, Stack)
    assert torch.equal(again(x), done.model(x))
    weights = codable(done.model)[0]
    for key, stack in codings_of(done.model).items():
        assert [coding.kind for coding in stack] == ["mask", "codebook"]
        assert bool((weights[key][~stack[0].mask] == 0).all())
        assert len(weights[key].unique()) <= 9
