"""ResNet-50 at batch 1 in ONNX Runtime: float32 against int8, dense and with half the channels' cost removed.

Random weights and inputs: shapes alone decide the time, so accuracy is not at issue here. The dense network and one
pruned to half its MACs (uniform L2 widths, rounded to multiples of `round_to`) are each exported to ONNX in float32 and
in int8 (QDQ, weights per channel, static ranges of activations), and all four sessions are timed in turn. `speedup` is
the median over the turns of (dense float32 time / this time), with its quartiles; `bytes` are those of the file.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torchvision

import secateur
from rows import machine, write_rows
from secateur.measure.latency import quartiles, quiet_machine, time_in_turn
from secateur.measure.runtimes import onnx_call
from secateur.quantize.backends import export_int8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--macs", type=float, default=0.5, help="what the pruned network keeps")
    parser.add_argument("--round-to", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=30, help="turns, after 5 that are not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the inputs")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    dense = torchvision.models.resnet50(weights=None).eval()
    x = torch.randn(args.batch, 3, 224, 224)
    config = secateur.PruneConfig(method=secateur.Uniform(round_to=args.round_to))
    pruned = secateur.apply(dense, secateur.plan(dense, x, secateur.Budget(macs=args.macs), config))
    calls, rows = [], []
    with tempfile.TemporaryDirectory() as folder, quiet_machine(args.threads):
        for name, model in (("dense", dense), ("pruned", pruned)):
            with torch.inference_mode(False):
                small = Path(folder) / f"{name}-int8.onnx"
                written = export_int8(model, small, x, [x, torch.randn_like(x)])
                full = secateur.export(model, Path(folder) / f"{name}.onnx", x).path
                macs = secateur.trace(model, x).cost().macs
            for numbers, file in (("float32", full), ("int8", small)):
                calls.append(onnx_call(file, written.inputs, x))
                rows.append({"network": name, "numbers": numbers, "MACs": macs, "bytes": file.stat().st_size})
        turns = time_in_turn(calls, repeats=args.repeats, warmup=5, device=torch.device("cpu"))
    for i, row in enumerate(rows):
        low, middle, high = quartiles([turn[0] / turn[i] for turn in turns])
        row |= {
            "latency ms": quartiles([turn[i] for turn in turns])[1],
            "speedup": middle,
            "speedup p25": low,
            "speedup p75": high,
            "batch": args.batch,
            "threads": args.threads,
            "repeats": args.repeats,
            "seed": args.seed,
            "machine": machine("torchvision", "onnxruntime", "onnx"),
        }
    columns = ("network", "numbers", "MACs", "bytes", "latency ms", "speedup", "speedup p25", "speedup p75")
    write_rows("int8_resnet50", rows, columns)


if __name__ == "__main__":
    main()
