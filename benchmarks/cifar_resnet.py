"""ResNet-56 and ResNet-20 for CIFAR-10: dense accuracy reproduced, half the MACs removed, the numeric law checked.

Needs the weights (`resnet56-4bfd9763.th`, `resnet20-12fca82f.th` of akamaster/pytorch_resnet_cifar10) and CIFAR-10 as
one npz with x_train, y_train, x_val, y_val (uint8, NHWC). No training here: the accuracy after pruning is that of the
criterion alone, and is reported with random pruning beside it. Accuracy is top-1 on x_val.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import secateur
from rows import machine, write_rows
from secateur.data import ArrayDataset
from secateur.measure import evaluate, latency
from secateur.models import MODELS
from secateur.steps import Distill, Finetune
from secateur.train import TrainConfig
from secateur.train.augment import ShiftFlip

MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
FILES = {"cifar_resnet20": "resnet20-12fca82f.th", "cifar_resnet56": "resnet56-4bfd9763.th"}


def load_weights(name: str, weights: Path) -> nn.Module:
    """The builtin network with the published weights."""
    state = torch.load(weights / FILES[name], map_location="cpu", weights_only=True)["state_dict"]
    model = MODELS[name]()
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    return model.eval()


def load_split(path: Path, split: str) -> ArrayDataset:
    """One split, normalised as the weights expect."""
    with np.load(path, allow_pickle=False) as arrays:
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
    images = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    return ArrayDataset(images, torch.from_numpy(y.astype("int64")), mean=MEAN, std=STD)


def guided(seed: int, epochs: int, lr: float = 0.01) -> Finetune:
    """How networks for CIFAR-10 are trained on: under the dense one's guidance."""
    train = TrainConfig(
        epochs=epochs,
        lr=lr,
        batch_size=128,
        optimizer="sgd",
        weight_decay=1e-4,
        augment=ShiftFlip(shift_px=4, flip=True),
        precision="auto",
        is_channels_last=True,
        is_compiled=True,
        seed=seed,
    )
    return Finetune(train=train, distill=Distill(weight=0.7, temperature=4.0))


def prune_half(model: nn.Module, x: Tensor, criterion: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """Half the MACs, with the time of each phase and the largest relative difference under the law."""
    start = time.perf_counter()
    config = secateur.PruneConfig(criterion=criterion, seed=seed)
    plan = secateur.plan(model, x, secateur.Budget(macs=0.5), config)
    planned = time.perf_counter()
    small = secateur.apply(model, plan, verify=False)
    applied = time.perf_counter()
    report = secateur.verify(model, small, plan, x)
    return small, {
        "verified": report.is_ok,
        "largest difference": report.max_difference,
        "params": plan.cost_after.params,
        "macs": plan.cost_after.macs,
        "plan s": planned - start,
        "apply s": applied - planned,
        "verify s": time.perf_counter() - applied,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the .th files")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an npz file")
    parser.add_argument("--models", nargs="+", default=list(FILES), choices=list(FILES))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="for random pruning and example inputs")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    val = load_split(args.data, "val")
    rows = []
    for name in args.models:
        dense = load_weights(name, args.weights)
        cost = secateur.trace(dense, torch.zeros(1, 3, 32, 32)).cost()
        base = {"model": name, "batch": 1, "threads": args.threads, "machine": machine()}
        row = {"method": "dense", "accuracy": evaluate(dense, val).accuracy, "params": cost.params, "macs": cost.macs}
        one = torch.randn(1, 3, 32, 32)
        rows.append({**base, **row, "latency ms": latency(dense, one).median_ms})
        for criterion, seed in [("random", s) for s in args.seeds] + [("l1", 0), ("l2", 0), ("bn_scale", 0)]:
            x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
            small, measured = prune_half(dense, x, criterion, seed)
            accuracy = evaluate(small, val).accuracy
            row = {"method": criterion, "seed": seed, "accuracy": accuracy, **measured}
            rows.append({**base, **row, "latency ms": latency(small, one).median_ms})
            print(rows[-1], flush=True)
    columns = ("model", "method", "seed", "accuracy", "params", "macs", "latency ms", "verified", "largest difference")
    write_rows("cifar_resnet", rows, columns)


if __name__ == "__main__":
    main()
