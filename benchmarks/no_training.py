"""CIFAR ResNets at a fraction of their MACs without training: compensation beside random, L2, Taylor and Torch-Pruning.

Needs the weights (`resnet56-4bfd9763.th`, `resnet20-12fca82f.th` of akamaster/pytorch_resnet_cifar10) and CIFAR-10 as
one npz with x_train, y_train, x_val, y_val (uint8, NHWC). Calibration: `--samples` unlabelled training images (a new
draw for each seed) and, for compensation, what is made of them (`views`); Taylor's gradients take their labels.
Settings are the library's defaults but for `FIT`. Accuracy is top-1 on all of x_val, which nothing here chooses by.
Rows that are there are kept.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from cifar_resnet import load_split, load_weights
from rows import machine, read_rows, write_rows
from secateur import Budget, PruneConfig
from secateur.allocate import Lagrangian
from secateur.compensation import CompensateConfig, ReconstructConfig, compensate_, reestimate_norms_
from secateur.criteria import Elimination
from secateur.data import ArrayDataset
from secateur.measure import evaluate
from secateur.train.augment import ShiftFlip
from secateur.train.views import laid_over, patched, turned

COLUMNS = ("model", "method", "asked", "macs kept", "params kept", "seed", "accuracy", "drop points", "seconds")
JOBS = ["cifar_resnet20:0.5", "cifar_resnet56:0.5", "cifar_resnet56:0.6667", "cifar_resnet56:0.3333"]
METHODS = ("compensation", "baselines")
LAST = "torch-pruning taylor, norms re-estimated"  # row of the baselines
EXAMPLE = torch.zeros(1, 3, 32, 32)
FIT = ReconstructConfig(epochs=1, end_epochs=3, end_lr=0.01, distance="mse", precision="auto")
PLANNED = 512  # of the images are planned on: all of them take longer, and gave no better plans on held-out ones
N_SOLVED = 112  # batches of views that weights are solved for on, and blocks are fitted on
TURNED = (False, True)  # draws of views for the last fit: whether images are turned and scaled too
Data = tuple[Tensor, Tensor]


def draw(train: ArrayDataset, n: int, seed: int) -> Data:
    """Calibration images with their labels."""
    index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[:n].tolist()
    return torch.stack([train[i][0] for i in index]), torch.tensor([int(train[i][1]) for i in index])


def prune(model: nn.Module, x: Tensor, data: list[Data], kept: float, config: PruneConfig) -> nn.Module:
    """One of the library's criteria, without compensation."""
    plan = secateur.plan(model, x[:1], Budget(macs=kept), config, data=data)
    return secateur.apply(model, plan)


def torch_pruning(model: nn.Module, x: Tensor, data: list[Data], kept: float, how: str) -> nn.Module:
    """Torch-Pruning 1.6.1 at the first pruning ratio that reaches the MACs, by bisection; its own global ranking."""
    import torch_pruning as tp

    dense = secateur.trace(model, x[:1]).cost().macs
    importances = {
        "magnitude": tp.importance.GroupMagnitudeImportance,
        "taylor": tp.importance.GroupTaylorImportance,
    }

    def cut(ratio: float) -> nn.Module:
        small = copy.deepcopy(model)
        importance = importances[how]()
        pruner = tp.pruner.BasePruner(
            small,
            x[:1],
            importance,
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=[small.linear],
        )
        if how == "taylor":
            for images, labels in data:
                nn.functional.cross_entropy(small(images), labels).backward()
        pruner.step()
        small.zero_grad(set_to_none=True)
        return small

    low, high = 0.0, 0.95
    for _ in range(12):
        middle = (low + high) / 2
        if secateur.trace(cut(middle), x[:1]).cost().macs > kept * dense:
            low = middle
        else:
            high = middle
    return cut(high)


def key(row: dict[str, Any]) -> tuple[str, str, float, int]:
    """What a row is about."""
    return row["model"], row["method"], row["asked"], row["seed"]


@dataclass
class Table:
    """Rows of one model, written after each, so that a killed run leaves what it has and a later one goes on."""

    name: str
    output: str
    facts: dict[str, Any]
    model: nn.Module
    val: ArrayDataset
    rows: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.accuracy = evaluate(self.model, self.val).accuracy
        self.cost = secateur.trace(self.model, EXAMPLE).cost()

    def measured(self, small: nn.Module) -> dict[str, Any]:
        """Accuracy and cost of a pruned model beside the dense one's."""
        found, now = evaluate(small, self.val).accuracy, secateur.trace(small, EXAMPLE).cost()
        return {
            "macs kept": now.macs / self.cost.macs,
            "params kept": now.params / self.cost.params,
            "accuracy": found,
            "drop points": 100 * (self.accuracy - found),
        }

    def add(self, method: str, small: nn.Module, kept: float, seed: int, seconds: float) -> None:
        """Measure a pruned model, in place of the row that there is."""
        row = {"model": self.name, "method": method, "asked": kept, "seed": seed, "seconds": seconds}
        self.rows[:] = [other for other in self.rows if key(other) != key(row)]
        self.rows.append({**row, **self.measured(small), **self.facts})
        write_rows(self.output, self.rows, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the .th files")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an npz file")
    parser.add_argument("--jobs", nargs="+", default=JOBS, help="model:fraction of MACs kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--output", default="no_training", help="name of the files in results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, val = load_split(args.data, "train"), load_split(args.data, "val")
    facts = {"samples": args.samples, "threads": args.threads, "machine": machine("torch-pruning")}
    rows = read_rows(args.output)
    done = {key(row) for row in rows}
    for seed in args.seeds:
        x, y = draw(train, args.samples, seed)
        for job in args.jobs:
            name, _, kept = job.partition(":")
            table = Table(name, args.output, facts, load_weights(name, args.weights), val, rows)
            if "compensation" in args.methods and (name, "compensation", float(kept), seed) not in done:
                compensated(table, x, float(kept), seed)
            if "baselines" in args.methods and (name, LAST, float(kept), seed) not in done:
                baselines(table, x, y, float(kept), seed)


def mirrored(x: Tensor) -> list[Tensor]:
    """Batches of images, each with its mirror image."""
    return [torch.cat([part, part.flip(3)]) for part in x.split(32)]


def elimination(model: nn.Module, x: Tensor, kept: float, seed: int) -> tuple[secateur.Plan, nn.Module]:
    """Plan by elimination and apply, without compensation."""
    config = PruneConfig(criterion=Elimination(seed=seed), method=Lagrangian(), seed=seed)
    plan = secateur.plan(model, x[:1], Budget(macs=kept), config, data=mirrored(x[:PLANNED]))
    return plan, secateur.apply(model, plan)


def views(x: Tensor, seed: int, *, is_turned: bool = False) -> list[Tensor]:
    """Batches of eight views of each image: four shifted and mirrored, two with a patch of another, two mixed with it.

    The dense network has learnt the images by heart; on mixed ones, too, it says what it would say of unseen ones.

    Args:
        is_turned: turn and scale all of them besides.
    """
    generator = torch.Generator().manual_seed(seed)
    shift = ShiftFlip(shift_px=4, flip=True)
    ways = (
        lambda a, _: a,
        lambda a, _: a,
        lambda a, b: patched(a, b, generator),
        lambda a, b: laid_over(a, b, generator),
    )
    made = []
    for way in ways * 2:
        moved = shift(x, generator)
        moved = turned(moved, generator, angle=0.2, scale=0.15) if is_turned else moved
        made.append(way(moved, moved[torch.randperm(len(x), generator=generator)]))
    images = torch.cat(made).contiguous(memory_format=torch.channels_last)
    return list(images[torch.randperm(len(images), generator=generator)].split(64))


def compensate(model: nn.Module, small: nn.Module, plan: secateur.Plan, x: Tensor, seed: int) -> None:
    """Solve for the weights again, fit segments, then all of it on other views of the images."""
    last = [batch for i, way in enumerate(TURNED, 1) for batch in views(x, seed + 1000 * i, is_turned=way)]
    config = CompensateConfig(reconstruct=FIT)
    compensate_(model, small, plan, views(x, seed)[:N_SOLVED], config, end_batches=last)


def compensated(table: Table, x: Tensor, kept: float, seed: int) -> None:
    """Elimination and compensation: in closed form alone, and with what is fitted after it."""
    model = table.model
    start = time.perf_counter()
    plan, small = elimination(model, x, kept, seed)
    planned = time.perf_counter() - start
    closed = copy.deepcopy(small)
    compensate_(model, closed, plan, mirrored(x), CompensateConfig(reconstruct=None))
    table.add("compensation, closed form", closed, kept, seed, time.perf_counter() - start)
    again = time.perf_counter()
    compensate(model, small, plan, x, seed)
    table.add("compensation", small, kept, seed, planned + time.perf_counter() - again)


def peers(model: nn.Module, x: Tensor, y: Tensor, kept: float, seed: int) -> dict[str, Callable[[], nn.Module]]:
    """Other ways to the same MACs, by name: criteria of the library, and Torch-Pruning's."""
    data = list(zip(x.split(64), y.split(64), strict=True))
    ours = {
        name: lambda criterion=name: prune(model, x, data, kept, PruneConfig(criterion=criterion, seed=seed))
        for name in ("random", "l2", "taylor")
    }
    theirs = {
        f"torch-pruning {how}": lambda how=how: torch_pruning(model, x, data, kept, how)
        for how in ("magnitude", "taylor")
    }
    return {**ours, **theirs}


def baselines(table: Table, x: Tensor, y: Tensor, kept: float, seed: int) -> None:
    """Peers, each as it is and with batch-norm statistics measured again."""
    for name, make in peers(table.model, x, y, kept, seed).items():
        start = time.perf_counter()
        small = make().eval()
        table.add(name, small, kept, seed, time.perf_counter() - start)
        reestimate_norms_(small, x.split(64))
        table.add(f"{name}, norms re-estimated", small, kept, seed, time.perf_counter() - start)


if __name__ == "__main__":
    main()
