"""ResNet-56 at half its MACs with a few epochs of training: every way of pruning gets the same epochs and images.

Needs the weights and CIFAR-10 as an npz (see no_training.py). Every pruned network learns under the dense one (the same
distillation, learning rate and augmentation for all), and stands in the table as its last epoch left it; `from scratch`
is a narrower ResNet-56 of at most these MACs with fresh weights and a higher rate. Accuracy is top-1 on all of x_val,
which nothing here chooses by. Rows that are there are kept, so that a long table can be made in several runs.
All networks of a seed see the same batches in the same order, so the dense outputs are computed for the first alone,
and once for several runs where `--answers` names a file; `seconds` of the others are without them.
"""

from __future__ import annotations

import argparse
import time
import zlib
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

import secateur
from cifar_resnet import guided, load_split, load_weights
from no_training import EXAMPLE, Table, compensate, draw, elimination, peers
from rows import machine, read_rows, write_rows
from secateur.compiling import compiled
from secateur.measure import evaluate
from secateur.models import CifarResNet
from secateur.steps import Context

NAME = "cifar_resnet56"
COLUMNS = ("method", "macs kept", "params kept", "epochs", "seed", "before", "accuracy", "drop points", "seconds")
METHODS = ("compensation", "random", "l2", "taylor", "torch-pruning magnitude", "torch-pruning taylor", "from scratch")
RATES = {"from scratch": {"lr": 0.1}}  # the others' is `guided`'s own


class Remembered(nn.Module):
    """A network in eval mode that answers a batch that it has seen before from memory. Copies share the memory.

    Args:
        path: a file that answers are read from, and written to by `save`.
    """

    def __init__(self, model: nn.Module, path: Path | None) -> None:
        super().__init__()
        self.program = compiled(model.eval())
        self.path = path
        self.known: dict[int, Tensor] = {}
        if path is not None and path.exists():
            self.known = torch.load(path, weights_only=True)

    def save(self) -> None:
        """Write what is known, where a file is named."""
        if self.path is not None:
            torch.save(self.known, self.path)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    @torch.compiler.disable(recursive=False)
    def forward(self, x: Tensor) -> Tensor:
        """The logits of a batch."""
        key = zlib.crc32(x.contiguous().numpy())
        if key not in self.known:
            self.known[key] = self.program(x)
        return self.known[key]


def macs(model: nn.Module) -> int:
    """Multiply-adds of one image."""
    return secateur.trace(model, EXAMPLE).cost().macs


def narrow(limit: int) -> nn.Module:
    """The widest ResNet-56 with fresh weights of at most so many MACs; stages double, as in the original."""
    fresh = [CifarResNet(56, widths=(w, 2 * w, 4 * w)) for w in range(2, 17, 2)]
    return next(model for model in reversed(fresh) if macs(model) <= limit)


def pruned(method: str, dense: nn.Module, x: torch.Tensor, y: torch.Tensor, kept: float, seed: int) -> nn.Module:
    """The network that training starts from."""
    if method == "from scratch":
        return narrow(int(kept * macs(dense)))
    if method == "compensation":
        plan, small = elimination(dense, x, kept, seed)
        compensate(dense, small, plan, x, seed)
        return small
    return peers(dense, x, y, kept, seed)[method]()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="folder with the .th file")
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an npz file")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--kept", type=float, default=0.5, help="fraction of the MACs")
    parser.add_argument("--samples", type=int, default=1024, help="calibration images")
    parser.add_argument("--answers", type=Path, help="file that the dense outputs are kept in, about 10 MB a seed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="fine_tuned", help="name of the files in results/")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train, val = load_split(args.data, "train"), load_split(args.data, "val")
    dense = load_weights(NAME, args.weights)
    facts = {"samples": args.samples, "threads": args.threads, "machine": machine("torch-pruning")}
    rows = read_rows(args.output)
    table = Table(NAME, args.output, facts, dense, val, rows)
    teacher = Remembered(dense, args.answers)
    done = {(row["method"], row["seed"], row["epochs"], row["asked"]) for row in rows}
    for seed in args.seeds:
        x, y = draw(train, args.samples, seed)
        for method in args.methods:
            if (method, seed, args.epochs, args.kept) in done:
                continue
            start = time.perf_counter()
            torch.manual_seed(seed)
            small = pruned(method, dense, x, y, args.kept, seed).eval()
            before = evaluate(small, val).accuracy
            step = guided(seed, args.epochs, **RATES.get(method, {}))
            context = Context(dense=teacher, inputs=lambda n, x=x: x[:n], calibration=list, train=train)
            small = step.run(small, context).model
            seconds = time.perf_counter() - start
            teacher.save()
            row = {"model": NAME, "method": method, "asked": args.kept, "epochs": args.epochs, "seed": seed}
            row |= {"before": before, **table.measured(small), "seconds": seconds, "step": repr(step)}
            rows.append({**row, **facts})
            write_rows(args.output, rows, COLUMNS)


if __name__ == "__main__":
    main()
