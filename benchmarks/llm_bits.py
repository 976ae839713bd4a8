"""Language models with weights of few bits, without training: perplexity and bytes by bits, granularity and method.

Models, text and windows are those of `language_models.py`. All linear layers inside the decoder layers are quantized;
embeddings and head stay float32. Their bits count codes (packed or entropy-coded, whichever is smaller) and scales.
With `--inputs`, what these layers read is rounded to 8 bits too (simulated), by ranges per tensor or of each token.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from typing import Any

import torch
from torch import Tensor, nn

from language_models import Batch, arguments, draw, load, perplexity
from rows import machine, read_rows, write_rows
from secateur.coding import bake
from secateur.measure import size_bytes
from secateur.quantize.inputs import PER
from secateur.steps import Context, Quantize, QuantizeInputs
from secateur.steps.quantize import quantize

ENDS = ("*lm_head", "*embed_tokens")
STEPS = {"rounded": Quantize(ignore=ENDS), "gptq": Quantize(ignore=ENDS, gptq=True)}
COLUMNS = ("method", "bits", "granularity", "inputs", "seed", "perplexity", "bits_per_weight", "bytes", "seconds")


def decoder_weights(model: nn.Module) -> int:
    """How many numbers the linear layers of the decoder layers hold."""
    modules = model.named_modules()
    return sum(m.weight.numel() for fqn, m in modules if isinstance(m, nn.Linear) and ".layers." in fqn)


def run(model: nn.Module, batches: list[Batch], test: Tensor, step: Quantize, inputs: str) -> dict[str, Any]:
    """Quantize a copy and measure it."""
    start = time.perf_counter()
    made = quantize(model, batches, step).model
    if inputs != "float":
        context = Context(dense=model, inputs=lambda n: batches[0], calibration=lambda: batches)
        made = QuantizeInputs(per=inputs, ignore=ENDS).run(made, context).model
    seconds = time.perf_counter() - start
    n, n_bytes = decoder_weights(model), size_bytes(made)
    others = size_bytes(model) - 4 * n
    found = perplexity(bake(made), test)
    return {"seconds": seconds, "bytes": n_bytes, "bits_per_weight": 8 * (n_bytes - others) / n, **found}


def main() -> None:
    parser = arguments(__doc__, STEPS, samples=16, length=256, windows=12)
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--granularities", nargs="+", default=["per_channel", "per_group?group_size=64"])
    parser.add_argument("--inputs", nargs="+", default=["float"], choices=["float", *PER])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model, pool, test = load(args)
    test = test[: args.windows]
    base = {k: v for k, v in vars(args).items() if k in ("model", "samples", "threads")}
    base |= {"length": pool.shape[1], "windows": len(test)}
    name = f"llm_bits_{args.model}"
    rows = [row for row in read_rows(name) if base.items() <= row.items()]  # a broken run goes on
    base["machine"] = machine("transformers")
    if not rows:
        rows = [
            {
                **base,
                "method": "dense",
                "bits": 32,
                "inputs": "float",
                "bytes": size_bytes(model),
                **perplexity(model, test),
            }
        ]
    done = [tuple(row.get(key) for key in COLUMNS[:5]) for row in rows]
    choices = args.bits, args.granularities, args.methods, args.inputs
    for seed in args.seeds:
        batches = draw(pool, args, seed)
        for bits, granularity, method, inputs in itertools.product(*choices):
            if (key := (method, bits, granularity, inputs, seed)) in done:
                continue
            step = dataclasses.replace(STEPS[method], bits=bits, granularity=granularity)
            rows.append({**base, **dict(zip(COLUMNS, key, strict=False)), **run(model, batches, test, step, inputs)})
            print({k: v for k, v in rows[-1].items() if k not in base}, flush=True)
            write_rows(name, rows, COLUMNS)


if __name__ == "__main__":
    main()
