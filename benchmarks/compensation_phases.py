"""ResNet-50 without training: seconds of each phase, from the first look to the last weight that is solved for.

Random weights and random images: shapes alone decide the time. What is timed is the default of
`secateur.compress(model, images, budget=Budget(macs=...))`, taken apart: structured OBS scores (Gram matrices, the
order of elimination, errors measured at several widths), allocation by a Lagrangian, surgery, proof, and the solve for
the weights that are left, layer by layer with the inputs of the pruned network; then, with `--fit`, the fit of
segments by gradients. Peak memory is that of the process until the end of the phase.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision

import secateur
from rows import machine, write_rows
from secateur import Budget, PruneConfig
from secateur.allocate import Lagrangian
from secateur.compensation import CompensateConfig, ReconstructConfig, compensate_
from secateur.criteria import Elimination
from secateur.planning import plan_graph
from secateur.repair import repair


class Phases:
    """One row per phase."""

    def __init__(self, base: dict[str, Any]) -> None:
        self.base = base
        self.rows: list[dict[str, Any]] = []

    def __call__(self, name: str, run: Callable[[], Any]) -> Any:
        clock, cpu = time.perf_counter(), time.process_time()
        result = run()
        seconds = {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        self.rows.append({"phase": name, **seconds, "peak_mb": peak, **self.base})
        print({k: v for k, v in self.rows[-1].items() if k not in self.base}, flush=True)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet50", help="name of a torchvision classifier")
    parser.add_argument("--samples", type=int, default=64, help="calibration images")
    parser.add_argument("--probe", type=int, default=16, help="of these, to measure errors on; at least a batch")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, default=224, help="pixels along each side")
    parser.add_argument("--macs", type=float, default=0.5, help="what may be kept")
    parser.add_argument("--fit", action="store_true", help="fit segments after the closed form, too")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    model = torchvision.models.get_model(args.model, weights=None).eval()
    batches = list(torch.randn(args.samples, 3, args.size, args.size).split(args.batch))
    x = batches[0][:1]
    config = PruneConfig(criterion=Elimination(n_probe=args.probe), method=Lagrangian(), seed=args.seed)
    phases = Phases({**vars(args), "machine": machine("torchvision")})

    graph = phases("capture", lambda: secateur.trace(model, x))
    repairer = phases("repair", lambda: repair(model, x, graph))
    order = Elimination(levels=())  # by the elimination's own errors alone
    phases("score: Gram matrices and elimination", lambda: order.curves(model, batches))
    found = phases("score: the same, and errors measured", lambda: config.criterion.curves(model, batches))
    others = {
        g.name: found.skipped.get(g.name, "has no error curve") for g in graph.prunable if g.name not in found.curves
    }
    plan = phases("allocate", lambda: plan_graph(repairer, found.curves, Budget(macs=args.macs), config, others))
    small = phases("apply", lambda: secateur.apply(model, plan, verify=False))
    report = phases("verify", lambda: secateur.verify(model, small, plan, x))
    assert report.is_ok, report
    closed = CompensateConfig(reconstruct=None)
    phases("solve", lambda: compensate_(model, small, plan, batches, closed))
    if args.fit:
        fitted = CompensateConfig(reconstruct=ReconstructConfig())
        phases(
            "solve and fit",
            lambda: compensate_(model, secateur.apply(model, plan, verify=False), plan, batches, fitted),
        )
    kept = plan.cost_after.macs / plan.cost_before.macs
    for row in phases.rows:
        row["macs kept"] = kept
    write_rows("compensation_phases", phases.rows, ("phase", "seconds", "cpu_seconds", "peak_mb"))


if __name__ == "__main__":
    main()
