"""Low rank, weight sharing and dropped layers without training, on real networks.

`resnet20`: the published CIFAR ResNet-20 (`resnet20-12fca82f.th` of akamaster/pytorch_resnet_cifar10), top-1 on all of
x_val. Factored under a budget of MACs, by each form; shared with codebooks of values or of kernels. `tiny`: any small
causal model of Transformers with `samples.npz` (`ids`), perplexity of the second half of the samples with one layer
dropped; the first half is for calibration. Bytes are those of the packed tensors that `secateur.save` writes. Seeds
draw the calibration images; what reads none, or starts nowhere at random, is measured once.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import secateur
from cifar_resnet import load_split, load_weights
from rows import machine, write_rows
from secateur.coding import bake, pack_state
from secateur.criteria import next_token_cross_entropy
from secateur.measure import evaluate
from secateur.steps import Context, Drop, Factorize, Share, Step

COLUMNS = ("model", "step", "seed", "macs kept", "bytes kept", "score", "dense", "seconds")
FORMS = ("svd", "spatial", "tucker", "cp")


def stored(model: nn.Module) -> int:
    """Bytes of the tensors in a file."""
    return sum(t.nbytes for t in pack_state(model, model.state_dict()).values())


def label(step: Step) -> str:
    """The step with what is not by default."""
    given = [f"{f.name}={getattr(step, f.name)!r}" for f in fields(step) if getattr(step, f.name) != f.default]
    return f"{step.name}({', '.join(given)})"


class Table:
    """Rows of one model, written after each."""

    def __init__(self, name: str, dense: nn.Module, score: Callable[[nn.Module], float], rows: list[Any]) -> None:
        self.name, self.dense, self.score, self.rows = name, dense, score, rows
        self.whole = score(dense)

    def add(self, step: Step, context: Context, macs: Callable[[nn.Module], int], seed: int) -> None:
        """Carry out a step on the dense model, and measure."""
        start = time.perf_counter()
        small = step.run(self.dense, context).model
        seconds = time.perf_counter() - start
        row = {
            "model": self.name,
            "step": label(step),
            "seed": seed,
            "macs kept": macs(small) / macs(self.dense),
            "bytes kept": stored(small) / stored(self.dense),
            "score": self.score(bake(small)),
            "dense": self.whole,
            "seconds": seconds,
            "machine": machine("transformers"),
        }
        self.rows.append(row)
        write_rows("structures", self.rows, COLUMNS)


def resnet(args: argparse.Namespace, rows: list[Any]) -> None:
    """Accuracy in percent."""
    val, train = load_split(args.data, "val"), load_split(args.data, "train")
    dense = load_weights("cifar_resnet20", args.weights)
    table = Table("cifar_resnet20", dense, lambda m: 100 * evaluate(m, val).accuracy, rows)

    def macs(model: nn.Module) -> int:
        return secateur.trace(model, torch.zeros(1, 3, 32, 32)).cost().macs

    for seed in args.seeds:
        drawn = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))[: args.samples].tolist()
        x = torch.stack([train[i][0] for i in drawn])
        context = Context(dense=dense, inputs=lambda n, x=x: x[:n], calibration=lambda x=x: x.split(128), seed=seed)
        steps: list[Step] = [Factorize(macs=kept) for kept in args.kept]
        if seed == args.seeds[0]:
            steps += [Factorize(macs=kept, form=form, is_aware=False) for kept in args.kept for form in FORMS]
            steps += [Share(n_values=n) for n in (4, 8, 16, 32)]
            steps += [Share(n_values=n, is_global=True) for n in (8, 16)]
        steps += [Share(n_values=n, is_kernel=True, is_global=True) for n in (64, 256)]
        for step in steps:
            table.add(step, context, macs, seed)


def tiny(args: argparse.Namespace, rows: list[Any]) -> None:
    """Perplexity."""
    import transformers

    dense = transformers.AutoModelForCausalLM.from_pretrained(args.tiny, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.load(args.tiny / "samples.npz")["ids"]).long()
    half = len(ids) // 2

    @torch.no_grad()
    def perplexity(model: nn.Module) -> float:
        losses = [float(next_token_cross_entropy(model(part, use_cache=False), part)) for part in ids[half:].split(32)]
        return math.exp(sum(losses) / len(losses))

    def macs(model: nn.Module) -> int:
        return secateur.trace(model, {"input_ids": ids[:1]}).cost().macs

    batches = [{"input_ids": part, "labels": part} for part in ids[:half].split(32)]
    context = Context(
        dense=dense,
        inputs=lambda n: {"input_ids": ids[:n]},
        calibration=lambda: iter(batches),
        loss=next_token_cross_entropy,
    )
    table = Table(args.tiny.name, dense, perplexity, rows)
    for by in ("first", "last", "angular", "kl", "loss"):
        table.add(Drop(n=1, by=by), context, macs, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the .th file")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an npz file")
    parser.add_argument("--tiny", type=Path, required=True, help="Hugging Face folder with samples.npz")
    parser.add_argument("--kept", type=float, nargs="+", default=[0.75, 0.5], help="fractions of MACs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[Any] = []
    tiny(args, rows)
    resnet(args, rows)


if __name__ == "__main__":
    main()
