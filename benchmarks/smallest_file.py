"""How small a trained network's folder gets within a point of accuracy: prune, quantize, fine-tune, round, squeeze.

`digits`: the built-in CNN, trained here on scikit-learn's digits. `resnet56`: needs the published CIFAR-10 weights and
CIFAR-10 as npz (see cifar_resnet.py). Sizes are bytes on disk: of the dense float32 safetensors file, of the weights
file of the result, and of its whole folder, with the plan and the manifest that loading needs. The result is loaded
again from the folder, and that model is what accuracy is measured on: digits' test part, or all of x_val; fine-tuning
ends with its last epoch, and nothing is chosen by that accuracy. Beside it stands a small float32 network of about the
same weights file, trained from scratch; for CIFAR-10 that is `narrow`.
"""

from __future__ import annotations

import argparse
import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import secateur
from cifar_resnet import guided, load_split, load_weights
from digits import trained
from rows import machine, write_rows
from secateur.allocate import Budget, Lagrangian, Uniform
from secateur.compensation import CompensateConfig
from secateur.compression import CompressConfig, MeasureConfig, run_steps
from secateur.criteria import Elimination
from secateur.data import DataSplits
from secateur.edits import Edits
from secateur.files import load
from secateur.measure import evaluate, size_bytes
from secateur.models import MODELS, CifarResNet
from secateur.planning import PruneConfig
from secateur.recipe import TRAIN
from secateur.steps import Distill, Finetune, Prune, Quantize, Round, Step
from secateur.train import TrainConfig, fit_

CLASSES = tuple(map(str, range(10)))
COLUMNS = (
    "model",
    "method",
    "criterion",
    "seed",
    "accuracy",
    "drop points",
    "file bytes",
    "times",
    "folder bytes",
    "seconds",
)
MEASURE = CompressConfig(measure=MeasureConfig(repeats=3, max_seconds=1.0))


def digits_steps(seed: int) -> list[Step]:
    """Fine-tuned between pruning and quantization, and after it."""
    train = dataclasses.replace(TRAIN, epochs=20, seed=seed)
    tune = Finetune(train=train, distill=Distill())
    return [Prune(budget=Budget(params=0.2)), tune, Quantize(bits=4, ends_bits=6), tune, Round()]


PRUNED_BY = {
    "elimination": lambda seed: PruneConfig(criterion=Elimination(seed=seed), method=Lagrangian(round_to=8), seed=seed),
    "random": lambda seed: PruneConfig(criterion="random", method=Uniform(round_to=8), seed=seed),
}


def resnet_steps(seed: int, epochs: int, bits: int, kept: Budget, criterion: str) -> list[Step]:
    """Pruned without labels, to widths that kernels are fast at; quantized, and trained on under the dense model."""
    return [
        Prune(budget=kept, prune=PRUNED_BY[criterion](seed), compensate=CompensateConfig(reconstruct=None)),
        Quantize(bits=bits, ends_bits=6, gptq=True),
        guided(seed, epochs),
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


def from_scratch(
    builds: Mapping[str, Callable[[], nn.Module]], splits: DataSplits, n_bytes: int, train: TrainConfig
) -> dict[str, Any]:
    """The largest of some networks (in rising order) of at most so many bytes in float32, trained from scratch."""
    fitting = [name for name, build in builds.items() if size_bytes(build()) <= n_bytes]
    torch.manual_seed(train.seed)
    model = builds[fitting[-1]]()
    start = time.perf_counter()
    fit_(model, splits.train, splits.val, train)
    return {
        "model": fitting[-1],
        "method": f"from scratch, float32, {train.epochs} epochs",
        "seed": train.seed,
        "accuracy": evaluate(model, splits.test).accuracy,
        "file bytes": size_bytes(model),
        "seconds": time.perf_counter() - start,
    }


def compared(row: dict[str, Any], dense: dict[str, Any]) -> dict[str, Any]:
    """A row of another network beside the dense one's accuracy and bytes."""
    lost = 100 * (dense["dense accuracy"] - row["accuracy"])
    return {**row, "drop points": lost, "times": dense["dense file bytes"] / row["file bytes"]}


def digits(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Train the dense CNN and make it small."""
    dense, splits = trained(seed)
    row = measured("digits_cnn", dense, splits, digits_steps(seed), seed)
    builds = {f"digits_cnn of width {w}": partial(MODELS["digits_cnn"], width=w) for w in range(1, 33)}
    train = dataclasses.replace(TRAIN, epochs=TRAIN.epochs + 40, seed=seed)
    return [row, compared(from_scratch(builds, splits, row["file bytes"], train), row)]


def cifar(args: argparse.Namespace, seed: int) -> tuple[nn.Module, DataSplits]:
    """The published network and its data; a part of x_train is set aside to watch training by."""
    train = load_split(args.data, "train")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed)).tolist()
    splits = DataSplits(
        train=train.subset(order[:-2000]),
        val=train.subset(order[-2000:]),
        test=load_split(args.data, "val"),
        classes=CLASSES,
    )
    return load_weights("cifar_resnet56", args.weights), splits


def resnet56(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """Make the published network small."""
    dense, splits = cifar(args, seed)
    kept = Budget(params=args.params, macs=args.macs)
    steps = resnet_steps(seed, args.epochs, args.bits, kept, args.criterion)
    checkpoints = args.checkpoints and args.checkpoints / f"resnet56-{args.criterion}-{seed}"
    row = measured("cifar_resnet56", dense, splits, steps, seed, checkpoints=checkpoints)
    return [{**row, "criterion": args.criterion}]


def narrow(args: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    """A narrow ResNet-20 in float32 of the same bytes, trained from scratch."""
    dense, splits = cifar(args, seed)
    whole = {"dense accuracy": evaluate(dense, splits.test).accuracy, "dense file bytes": size_bytes(dense)}
    builds = {
        f"cifar_resnet20 of widths {w}, {2 * w}, {4 * w}": partial(CifarResNet, 20, widths=(w, 2 * w, 4 * w))
        for w in range(2, 17, 2)
    }
    train = guided(seed, args.scratch_epochs, lr=0.1).train  # its own labels alone
    return [compared(from_scratch(builds, splits, args.bytes, train), whole)]


RUNS = {"digits": digits, "resnet56": resnet56, "narrow": narrow}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["digits"], choices=[*RUNS])
    parser.add_argument("--weights", type=Path, help="folder with the .th file, for resnet56 and narrow")
    parser.add_argument("--data", type=Path, help="CIFAR-10 as an npz file, for resnet56 and narrow")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=8, help="of fine-tuning, for resnet56")
    parser.add_argument("--criterion", default="elimination", choices=[*PRUNED_BY], help="of pruning, for resnet56")
    parser.add_argument("--bits", type=int, default=3, help="per weight, for resnet56")
    parser.add_argument("--params", type=float, default=0.53, help="fraction kept of resnet56's parameters")
    parser.add_argument("--macs", type=float, default=0.6, help="of its MACs: they are the time that training takes")
    parser.add_argument("--bytes", type=int, default=170_000, help="at most, of the file of narrow")
    parser.add_argument("--scratch-epochs", type=int, default=30, help="of narrow")
    parser.add_argument("--checkpoints", type=Path, help="folder to go on from after a kill (seconds: of the last run)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="smallest_file", help="name of the files in results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.compiler.config.force_disable_caches = True  # else seconds would not count programs of an earlier run
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    facts = {"threads": args.threads, "machine": machine()}
    rows: list[dict[str, Any]] = []
    for name in args.models:
        for seed in args.seeds:
            rows += [{**row, **facts} for row in RUNS[name](args, seed)]
            write_rows(args.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
