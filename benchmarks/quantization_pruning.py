"""The digits CNN at one size by units and bits together, by bits alone, and by units alone: accuracy without training.

The size is that of a file in which every weight has so many bits, scales, biases and norms included. `units and bits`
is the step `mix`; `bits alone` the same step with all widths kept; `units alone` prunes to that size in float32, and
`units, 8 bits` prunes as far as 8 bits for every weight allow. All are calibrated on the same 256 images without
labels, units go by structured optimal brain surgeon, and the weights that are left are solved for again.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from digits import trained
from quantize_digits import accuracy
from rows import machine, write_rows
from secateur.allocate import Budget, DynamicProgram
from secateur.coding import codable
from secateur.compensation import CompensateConfig
from secateur.criteria import Elimination
from secateur.measure import size_bytes
from secateur.planning import PruneConfig
from secateur.steps import Context, Mix, Prune, Quantize, Step

WAYS = ("units and bits", "bits alone", "units alone", "units, 8 bits")


def steps_of(way: str, bits: float, model: nn.Module) -> list[Step]:
    """The steps that bring a model to the size of `bits` per weight."""
    if way == "units and bits":
        return [Mix(bits=bits)]
    if way == "bits alone":
        return [Mix(bits=bits, has_units=False)]
    n_weights = sum(w.numel() for w in codable(model)[0].values())
    dense = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    rest = dense - 4 * n_weights + 4 * sum(len(w) for w in codable(model)[0].values())
    limit = n_weights * bits / 8 + rest
    config = PruneConfig(criterion=Elimination(distance="mse"), method=DynamicProgram())
    widest = limit if way == "units alone" else dense * bits / 8  # 8 bits a weight, which pruning sees as 32
    prune = Prune(budget=Budget(size_bytes=widest), prune=config, compensate=CompensateConfig())
    return [prune] if way == "units alone" else [prune, Quantize()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, batches and the split")
    parser.add_argument("--bits", type=float, nargs="+", default=[1, 2, 3], help="per weight of the dense network")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in args.seeds:
        dense, splits = trained(seed)
        base = {"seed": seed, "machine": machine()}
        row = {"way": "dense", "bits": 32, "accuracy": accuracy(dense, splits.test), "bytes": size_bytes(dense)}
        rows.append({**base, **row})
        x = splits.train.fetch(slice(256))[0]
        context = Context(dense=dense, inputs=lambda n, x=x: x[:n], calibration=lambda x=x: list(x.split(64)))
        for bits in args.bits:
            for way in WAYS:
                start, small = time.perf_counter(), dense
                for step in steps_of(way, bits, dense):
                    small = step.run(small, context).model
                row = {"way": way, "bits": bits, "accuracy": accuracy(small, splits.test), "bytes": size_bytes(small)}
                rows.append({**base, **row, "seconds": time.perf_counter() - start})
                print(rows[-1], flush=True)
    write_rows("quantization_pruning", rows, ("way", "bits", "seed", "accuracy", "bytes", "seconds"))


if __name__ == "__main__":
    main()
