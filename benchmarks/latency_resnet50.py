"""ResNet-50 at half its MACs: how much of that is realised in ONNX Runtime, against Torch-Pruning, in one run.

Random weights: widths alone decide the time. Every model is exported to ONNX and all sessions are timed in turn, so
that a drift of the machine hits all of them. `speedup` is the median over the turns of (dense time / this time),
`MAC ratio` is dense MACs / this model's MACs, both tools counted by Secateur's meter, and `realised` is the first over
the second. Widths are rounded to multiples of `round_to`, each of which is a row. Torch-Pruning prunes with its group
L2 magnitude, at the pruning ratio (found by bisection) whose MACs are nearest to the budget.
"""

from __future__ import annotations

import argparse
import copy
import time

import torch
import torchvision
from torch import Tensor, nn

import secateur
from rows import machine, write_rows
from secateur.measure import compare_latency


def ours(dense: nn.Module, x: Tensor, macs: float, round_to: int) -> nn.Module:
    """Secateur's result: uniform widths, L2."""
    config = secateur.PruneConfig(method=secateur.Uniform(round_to=round_to))
    return secateur.apply(dense, secateur.plan(dense, x, secateur.Budget(macs=macs), config))


def torch_pruning(dense: nn.Module, x: Tensor, macs: float, round_to: int) -> nn.Module:
    """Torch-Pruning's result whose MACs are nearest to the budget."""
    import torch_pruning as tool

    def prune(ratio: float) -> nn.Module:
        model = copy.deepcopy(dense)
        tool.pruner.BasePruner(
            model,
            x,
            importance=tool.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=[model.fc],
            round_to=round_to,
        ).step()
        return model

    wanted = macs * count_macs(dense, x)
    low, high = 0.0, 1.0
    tried = []
    for _ in range(8):
        middle = (low + high) / 2
        tried.append(prune(middle))
        low, high = (middle, high) if count_macs(tried[-1], x) > wanted else (low, middle)
    return min(tried, key=lambda model: abs(count_macs(model, x) - wanted))


def count_macs(model: nn.Module, x: Tensor) -> int:
    return secateur.trace(model, x).cost().macs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--macs", type=float, default=0.5, help="what may be kept")
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8, 16, 32])
    parser.add_argument("--runtime", default="onnx", choices=("eager", "compile", "onnx"))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=60, help="turns, after 10 that are not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the input")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    dense = torchvision.models.resnet50(weights=None).eval()
    x = torch.randn(args.batch, 3, 224, 224)
    models: dict[tuple[str, int | None], nn.Module] = {("dense", None): dense}
    prune_s: dict[tuple[str, int | None], float] = {}
    for tool, prune in (("secateur", ours), ("torch-pruning", torch_pruning)):
        for round_to in args.round_to:
            start = time.perf_counter()
            models[tool, round_to] = prune(dense, x, args.macs, round_to)
            prune_s[tool, round_to] = time.perf_counter() - start
    timed = compare_latency(
        list(models.values()), x, runtime=args.runtime, repeats=args.repeats, n_threads=args.threads
    )
    dense_macs = count_macs(dense, x)
    rows = []
    for (key, model), found, speedup in zip(models.items(), timed.latencies, timed.speedups, strict=True):
        macs = count_macs(model, x)
        ratio = dense_macs / macs
        rows.append(
            {
                "tool": key[0],
                "round_to": key[1],
                "MACs": macs,
                "params": sum(p.numel() for p in model.parameters()),
                "MAC ratio": ratio,
                "latency ms": found.median_ms,
                "p25 ms": found.p25_ms,
                "p75 ms": found.p75_ms,
                "speedup": speedup.median,
                "speedup p25": speedup.p25,
                "speedup p75": speedup.p75,
                "realised": speedup.median / ratio,
                "prune s": prune_s.get(key),
                "runtime": found.runtime,
                "batch": found.batch_size,
                "threads": found.n_threads,
                "repeats": found.repeats,
                "seed": args.seed,
                "machine": machine("torchvision", "onnxruntime", "torch-pruning"),
            }
        )
    columns = ("tool", "round_to", "MACs", "MAC ratio", "latency ms", "p25 ms", "p75 ms", "speedup", "realised")
    write_rows("latency_resnet50", rows, columns)


if __name__ == "__main__":
    main()
