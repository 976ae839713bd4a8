"""How small a trained network's folder gets within a point of accuracy: prune, quantize, fine-tune, round, squeeze.

`digits`: the built-in CNN, trained here on scikit-learn's digits. `resnet56`: needs the published CIFAR-10 weights and
CIFAR-10 as npz (see cifar_resnet.py). Sizes are bytes on disk: of the dense float32 safetensors file, of the weights
file of the result, and of its whole folder, with the plan and the manifest that loading needs. The result is loaded
again from the folder, and that model is what accuracy is measured on: digits' test part, or all of x_val; fine-tuning
ends with its last epoch, and nothing is chosen by that accuracy. Beside it stands a small network of about the same
weights file, trained from scratch (digits).
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from cifar_resnet import load_split, load_weights
from digits import trained
from rows import machine, write_rows
from secateur.allocate import Budget, Lagrangian
from secateur.compensation import CompensateConfig
from secateur.compression import CompressConfig, MeasureConfig, run_steps
from secateur.criteria import Elimination
from secateur.data import DataSplits
from secateur.edits import Edits
from secateur.files import load
from secateur.measure import evaluate, size_bytes
from secateur.models import MODELS
from secateur.planning import PruneConfig
from secateur.recipe import TRAIN
from secateur.steps import Distill, Finetune, Prune, Quantize, Round, Step
from secateur.train import TrainConfig, fit_
from secateur.train.augment import ShiftFlip

CLASSES = tuple(map(str, range(10)))
COLUMNS = ("model", "method", "seed", "accuracy", "drop points", "file bytes", "times", "folder bytes", "seconds")
MEASURE = CompressConfig(measure=MeasureConfig(repeats=3, max_seconds=1.0))


def digits_steps(seed: int) -> list[Step]:
    """Fine-tuned between pruning and quantization, and after it."""
    train = dataclasses.replace(TRAIN, epochs=20, seed=seed)
    tune = Finetune(train=train, distill=Distill())
    return [Prune(budget=Budget(params=0.2)), tune, Quantize(bits=4, ends_bits=6), tune, Round()]


def resnet_steps(seed: int, epochs: int, bits: int, kept: Budget) -> list[Step]:
    """Pruned without labels, to widths that kernels are fast at; quantized, and trained on under the dense model."""
    prune = PruneConfig(criterion=Elimination(seed=seed), method=Lagrangian(round_to=8), seed=seed)
    train = TrainConfig(
        epochs=epochs,
        lr=0.01,
        batch_size=128,
        optimizer="sgd",
        weight_decay=1e-4,
        augment=ShiftFlip(shift_px=4, flip=True),
        precision="bf16",
        seed=seed,
    )
    return [
        Prune(budget=kept, prune=prune, compensate=CompensateConfig(reconstruct=None)),
        Quantize(bits=bits, ends_bits=6),
        Finetune(train=train, distill=Distill(weight=0.7, temperature=4.0)),
        Round(),
    ]


def measured(
    name: str, dense: nn.Module, splits: DataSplits, steps: list[Step], seed: int, *, checkpoints: Path | None = None
) -> dict[str, Any]:
    """Carry the steps out, save, load again, and measure what was loaded."""
    before = evaluate(dense, splits.test).accuracy
    start, busy = time.perf_counter(), time.process_time()
    done = run_steps(dense, splits, steps, config=MEASURE, checkpoints=checkpoints)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - busy
    print(done.report)
    with tempfile.TemporaryDirectory() as there:
        folder = secateur.save(done.model, f"{there}/small", plan=done.edits, is_compact=True)
        again = load(folder, MODELS[name])
        files = {path.name: path.stat().st_size for path in folder.iterdir()}
        plain = secateur.save(dense, f"{there}/dense", plan=Edits(inputs=done.edits.inputs))
        whole = (plain / "model.safetensors").stat().st_size
    accuracy = evaluate(again, splits.test).accuracy
    small = files["model.safetensors.xz"]
    return {
        "model": name,
        "method": ", ".join(step.name for step in steps),
        "seed": seed,
        "accuracy": accuracy,
        "dense accuracy": before,
        "drop points": 100 * (before - accuracy),
        "file bytes": small,
        "dense file bytes": whole,
        "times": whole / small,
        "folder bytes": sum(files.values()),
        "folder times": whole / sum(files.values()),
        "files": files,
        "seconds": seconds,
        "cpu seconds": cpu_seconds,
        "stages": {stage: m.accuracy for stage, m in done.report.stages().items()},
        "steps": [repr(step) for step in steps],
    }


def from_scratch(splits: DataSplits, dense: dict[str, Any], seed: int) -> dict[str, Any]:
    """The widest digits CNN in float32 whose file is no longer than the result's, trained as long as all of it."""
    width = max(w for w in range(1, 33) if size_bytes(MODELS["digits_cnn"](width=w)) <= dense["file bytes"])
    torch.manual_seed(seed)
    model = MODELS["digits_cnn"](width=width)
    start = time.perf_counter()
    fit_(model, splits.train, splits.val, dataclasses.replace(TRAIN, epochs=TRAIN.epochs + 40, seed=seed))
    accuracy = evaluate(model, splits.test).accuracy
    return {
        "model": "digits_cnn",
        "method": f"from scratch at width {width}, float32",
        "seed": seed,
        "accuracy": accuracy,
        "drop points": 100 * (dense["dense accuracy"] - accuracy),
        "file bytes": size_bytes(model),
        "times": dense["dense file bytes"] / size_bytes(model),
        "seconds": time.perf_counter() - start,
    }


def digits(seed: int) -> list[dict[str, Any]]:
    """Train the dense CNN and make it small."""
    dense, splits = trained(seed)
    row = measured("digits_cnn", dense, splits, digits_steps(seed), seed)
    return [row, from_scratch(splits, row, seed)]


def resnet56(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Make the published network small; a part of x_train is set aside to watch fine-tuning by."""
    train = load_split(args.data, "train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    splits = DataSplits(
        train=train.subset(order[:-2000]),
        val=train.subset(order[-2000:]),
        test=load_split(args.data, "val"),
        classes=CLASSES,
    )
    dense = load_weights("cifar_resnet56", args.weights)
    steps = resnet_steps(seed, args.epochs, args.bits, Budget(params=args.params, macs=args.macs))
    checkpoints = args.checkpoints and args.checkpoints / f"resnet56-{seed}"
    return [measured("cifar_resnet56", dense, splits, steps, seed, checkpoints=checkpoints)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["digits"], choices=["digits", "resnet56"])
    parser.add_argument("--weights", type=Path, help="folder with the .th file, for resnet56")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as an npz file, for resnet56")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning, for resnet56")
    parser.add_argument("--bits", type=int, default=3, help="per weight, for resnet56")
    parser.add_argument("--params", type=float, default=0.53, help="fraction kept of resnet56's parameters")
    parser.add_argument("--macs", type=float, default=0.6, help="of its MACs: they are the time that training takes")
    parser.add_argument("--checkpoints", type=Path, help="folder to go on from after a kill (seconds: of the last run)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="smallest_file", help="name of the files in results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    facts = {"threads": args.threads, "machine": machine()}
    rows: list[dict[str, Any]] = []
    for name in args.models:
        for seed in args.seeds:
            rows += [{**row, **facts} for row in (digits(seed) if name == "digits" else resnet56(args, seed))]
            write_rows(args.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
