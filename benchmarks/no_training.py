"""CIFAR ResNets at a fraction of their MACs without training: compensation beside random, L2, Taylor and Torch-Pruning.

Needs the weights (`resnet56-4bfd9763.th`, `resnet20-12fca82f.th` of akamaster/pytorch_resnet_cifar10) and CIFAR-10 as
one npz with x_train, y_train, x_val, y_val (uint8, NHWC). Calibration: `--samples` unlabelled training images (a new
draw for each seed) and, for compensation, their mirror images; Taylor's gradients take their labels. Settings are the
library's defaults. Accuracy is top-1 on all of x_val, which nothing here chooses by.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from cifar_resnet import load_split, load_weights
from rows import machine, write_rows
from secateur import Budget, PruneConfig
from secateur.allocate import Lagrangian
from secateur.compensation import CompensateConfig, compensate_, reestimate_norms_
from secateur.criteria import Elimination
from secateur.measure import evaluate

COLUMNS = ("model", "method", "asked", "macs kept", "params kept", "seed", "accuracy", "drop points", "seconds")
Data = tuple[Tensor, Tensor]


def prune(model: nn.Module, x: Tensor, data: list[Data], kept: float, config: PruneConfig) -> nn.Module:
    """One of the library's criteria, without compensation."""
    plan = secateur.plan(model, x[:1], Budget(macs=kept), config, data=data)
    return secateur.apply(model, plan)


def torch_pruning(model: nn.Module, x: Tensor, data: list[Data], kept: float, how: str) -> nn.Module:
    """Torch-Pruning 1.6.1 at the first pruning ratio that reaches the MACs, by bisection; its own global ranking."""
    import torch_pruning as tp

    dense = secateur.trace(model, x[:1]).cost().macs

    def cut(ratio: float) -> nn.Module:
        small = copy.deepcopy(model)
        importance = {
            "magnitude": tp.importance.GroupMagnitudeImportance,
            "taylor": tp.importance.GroupTaylorImportance,
        }[how]()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the .th files")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an npz file")
    parser.add_argument(
        "--jobs",
        nargs="+",
        default=["cifar_resnet20:0.5", "cifar_resnet56:0.5", "cifar_resnet56:0.6667", "cifar_resnet56:0.3333"],
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--methods", nargs="+", default=["compensation", "baselines"], choices=["compensation", "baselines"]
    )
    parser.add_argument("--output", default="no_training", help="name of the files in results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, val = load_split(args.data, "train"), load_split(args.data, "val")
    rows: list[dict[str, Any]] = []
    dense: dict[str, tuple[nn.Module, float, Any]] = {}
    for job in args.jobs:
        name, _, kept_text = job.partition(":")
        kept = float(kept_text)
        if name not in dense:
            model = load_weights(name, args.weights)
            dense[name] = model, evaluate(model, val).accuracy, secateur.trace(model, torch.zeros(1, 3, 32, 32)).cost()
        model, accuracy, cost = dense[name]

        def record(method: str, small: nn.Module, seed: int, seconds: float) -> None:
            found, now = evaluate(small, val).accuracy, secateur.trace(small, torch.zeros(1, 3, 32, 32)).cost()
            row = {
                "model": name,
                "method": method,
                "asked": kept,
                "macs kept": now.macs / cost.macs,
                "params kept": now.params / cost.params,
                "seed": seed,
                "accuracy": found,
                "drop points": 100 * (accuracy - found),
                "seconds": seconds,
                "samples": args.samples,
                "threads": args.threads,
                "machine": machine("torch-pruning"),
            }
            rows.append(row)
            write_rows(args.output, rows, COLUMNS)

        for seed in args.seeds:
            index = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: args.samples].tolist()
            x = torch.stack([train[i][0] for i in index])
            y = torch.tensor([int(train[i][1]) for i in index])
            if "compensation" in args.methods:
                compensated(model, x, kept, seed, record)
            if "baselines" in args.methods:
                baselines(model, x, y, kept, seed, record)


Record = Callable[[str, nn.Module, int, float], None]


def compensated(model: nn.Module, x: Tensor, kept: float, seed: int, record: Record) -> None:
    """Elimination and compensation, with and without the reconstruction of segments."""
    start = time.perf_counter()
    batches = [torch.cat([part, part.flip(3)]) for part in x.split(32)]
    config = PruneConfig(criterion=Elimination(seed=seed), method=Lagrangian(), seed=seed)
    plan = secateur.plan(model, x[:1], Budget(macs=kept), config, data=batches)
    small = secateur.apply(model, plan)
    planned = time.perf_counter() - start
    closed = copy.deepcopy(small)
    compensate_(model, closed, plan, batches, CompensateConfig(reconstruct=None))
    record("compensation, closed form", closed, seed, time.perf_counter() - start)
    again = time.perf_counter()
    compensate_(model, small, plan, batches)
    record("compensation", small, seed, planned + time.perf_counter() - again)


def baselines(model: nn.Module, x: Tensor, y: Tensor, kept: float, seed: int, record: Record) -> None:
    """Other criteria at the same MACs, each as it is and with batch-norm statistics measured again."""
    data = list(zip(x.split(64), y.split(64), strict=True))
    ways: dict[str, Callable[[], nn.Module]] = {
        name: lambda criterion=name: prune(model, x, data, kept, PruneConfig(criterion=criterion, seed=seed))
        for name in ("random", "l2", "taylor")
    }
    ways |= {
        f"torch-pruning {how}": lambda how=how: torch_pruning(model, x, data, kept, how)
        for how in ("magnitude", "taylor")
    }
    for name, make in ways.items():
        start = time.perf_counter()
        small = make().eval()
        record(name, small, seed, time.perf_counter() - start)
        reestimate_norms_(small, x.split(64))
        record(f"{name}, norms re-estimated", small, seed, time.perf_counter() - start)


if __name__ == "__main__":
    main()
