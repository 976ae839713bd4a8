"""Predicted against measured latency: the whole network at random widths, eager, one thread.

Widths are drawn per group around a common fraction. `predicted` and `measured` are fractions of the dense network's
time. Measured is processor time of whole forwards, the least of the turns: the machine may be busy, and other work only
ever adds to it. `error` is |predicted / measured - 1|. Beside it, the error of taking the MAC fraction for the time.
"""

from __future__ import annotations

import argparse
import random
import time

import torch
import torchvision
from torch import nn

import secateur
from rows import machine, write_rows
from secateur.allocate import Allocation
from secateur.graph import Graph
from secateur.measure.latency import quiet_machine, time_in_turn
from secateur.measure.prediction import predict_latency
from secateur.models import MODELS
from secateur.planning import make_plan
from secateur.repair import repair

CASES = (("cifar_resnet56", 1), ("cifar_resnet56", 32), ("resnet50", 1), ("vit_b_16", 1))


def random_counts(graph: Graph, round_to: int, seed: int) -> dict[str, int]:
    """Counts around a common fraction from 0.2 to 0.8; groups under one tie share theirs."""
    rng = random.Random(seed)
    middle = rng.uniform(0.2, 0.8)
    counts: dict[str, int] = {}
    for group in graph.prunable:
        if group.name not in counts and not group.tied_to:
            wanted = min(1.0, max(0.1, middle + rng.uniform(-0.3, 0.3))) * group.size
            counts[group.name] = min(group.size, max(1, round(wanted / round_to) * round_to))
    return counts


def run(name: str, batch: int, round_to: int, n_trials: int, turns: int) -> list[dict[str, object]]:
    """One row per drawn choice of widths."""
    is_builtin = name in MODELS
    dense: nn.Module = MODELS[name]() if is_builtin else torchvision.models.get_model(name, weights=None)
    dense.eval()
    x = torch.randn(batch, 3, *((32, 32) if is_builtin else (224, 224)))
    graph = secateur.trace(dense, x)
    bindings = repair(dense, x, graph).bindings
    start = time.perf_counter()
    predicted = predict_latency(dense, x, graph, round_to=round_to)
    table_s = time.perf_counter() - start
    choices: list[dict[str, int]] = [{}, *(random_counts(graph, round_to, seed) for seed in range(n_trials))]
    models = []
    for counts in choices:
        kept = Allocation({group: tuple(range(n)) for group, n in counts.items()}, {})
        models.append(secateur.apply(dense, make_plan(graph, bindings, kept, x), verify=False).eval())
    with quiet_machine(1):
        calls = [lambda model=model: model(x) for model in models]
        times = time_in_turn(calls, repeats=turns, warmup=2, device=x.device, clock=time.thread_time_ns)
    least = [min(turn[i] for turn in times) for i in range(len(models))]
    full = graph.cost().macs
    rows = []
    for seed, (counts, real) in enumerate(zip(choices[1:], least[1:], strict=True)):
        guess = predicted(graph.leaf_counts(counts)) / predicted({})
        macs = graph.cost(counts).macs / full
        rows.append(
            {
                "model": name,
                "batch": batch,
                "round_to": round_to,
                "seed": seed,
                "MACs kept": macs,
                "measured": real / least[0],
                "predicted": guess,
                "error": abs(guess / (real / least[0]) - 1),
                "error by MACs": abs(macs / (real / least[0]) - 1),
                "dense ms": least[0],
                "operators ms": predicted.sum_ms,
                "table s": table_s,
                "turns": turns,
                "machine": machine("torchvision"),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round-to", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--trials", type=int, default=6, help="choices of widths per network")
    parser.add_argument("--turns", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for name, batch in CASES:
        for round_to in args.round_to:
            found = run(name, batch, round_to, args.trials, args.turns)
            rows += found
            errors = [[row[key] for row in found] for key in ("error", "error by MACs")]
            print(name, batch, round_to, *(f"{sum(e) / len(e):.3f}" for e in errors), flush=True)
    columns = ("model", "batch", "round_to", "seed", "MACs kept", "measured", "predicted", "error", "error by MACs")
    write_rows("latency_prediction", rows, columns)


if __name__ == "__main__":
    main()
