"""The digits CNN with binary, ternary, 4-bit and 8-bit weights: accuracy and bytes, trained on with straight-through
gradients.

The dense network is trained once per seed. Each coding is put on its weights: `rounded` is the test accuracy right
then, `accuracy` that after fine-tuning, in which scales learn too. Every weight of two or more axes is coded, the first
and the last layer included, with those at 8 bits where the row says `8-bit ends`. Bytes are those of the safetensors
file of the whole state (norms, biases, scales and header too), codes bit-packed or entropy-coded, whichever is smaller.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import torch

from digits import trained
from rows import machine, write_rows
from secateur.data import ArrayDataset
from secateur.measure import evaluate, size_bytes
from secateur.recipe import FINETUNE
from secateur.steps.quantize import Quantize, quantize
from secateur.surgery import copy_model
from secateur.train import fit_

CODINGS = {
    "8 bits": Quantize(bits=8),
    "8 bits, per tensor": Quantize(bits=8, granularity="per_tensor"),
    "4 bits": Quantize(bits=4),
    "4 bits, gptq": Quantize(bits=4, gptq=True),
    "4 bits, per tensor": Quantize(bits=4, granularity="per_tensor"),
    "2 bits": Quantize(bits=2),
    "ternary": Quantize(method="ternary"),
    "ternary, 8-bit ends": Quantize(method="ternary", ends_bits=8),
    "binary": Quantize(method="binary"),
    "binary, 8-bit ends": Quantize(method="binary", ends_bits=8),
}


def accuracy(model: torch.nn.Module, data: ArrayDataset) -> float:
    return float(evaluate(model, data).accuracy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of weights, batches and the split")
    parser.add_argument("--codings", nargs="+", default=list(CODINGS), choices=list(CODINGS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for seed in args.seeds:
        dense, splits = trained(seed)
        base = {"seed": seed, "machine": machine()}
        n_dense = size_bytes(dense)
        rows.append(
            {**base, "weights": "dense", "accuracy": accuracy(dense, splits.test), "bytes": n_dense, "ratio": 1.0}
        )
        for name in args.codings:
            start = time.perf_counter()
            small = quantize(dense, [splits.train.fetch(slice(256))[0]], CODINGS[name]).model
            rounded = accuracy(small, splits.test)
            tuned = copy_model(small)
            fit_(tuned, splits.train, splits.val, dataclasses.replace(FINETUNE, seed=seed))
            tuned.eval()
            n_bytes = size_bytes(tuned)
            row = {"weights": name, "rounded": rounded, "accuracy": accuracy(tuned, splits.test), "bytes": n_bytes}
            rows.append({**base, **row, "ratio": n_dense / n_bytes, "seconds": time.perf_counter() - start})
            print(rows[-1], flush=True)
    write_rows("quantize_digits", rows, ("weights", "seed", "rounded", "accuracy", "bytes", "ratio", "seconds"))


if __name__ == "__main__":
    main()
