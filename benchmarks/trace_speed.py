"""Time to find what must shrink together: `secateur.trace` against Torch-Pruning's dependency graph, in one run.

Both start from the same model on the CPU and the same example input; both are repeated and the median is kept. Times
are processor time of the tool's own process, which runs one thread, so that others on the machine count little; the
clock is written down too. Each is timed twice: `trace(model, x)` against building the peer's graph, which tells how
neighbouring layers hang together; and both with the list of groups, which tells what must shrink together.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from rows import machine, write_rows

PEERS = {"secateur": "torch-pruning", "secateur groups": "torch-pruning groups"}
TOOLS = (*PEERS, *PEERS.values())
MODELS = ("resnet50", "densenet121", "vit_b_16", "swin_t")


def seconds(run: Callable[[], Any], repeats: int) -> list[tuple[float, float]]:
    """(processor time, time on the clock) of a first call, then of each of `repeats` further calls."""
    times = []
    for _ in range(repeats + 1):
        start, clock = time.process_time(), time.perf_counter()
        run()
        times.append((time.process_time() - start, time.perf_counter() - clock))
    return times


def measure(name: str, tool: str, repeats: int, threads: int, answer: Any) -> None:
    """In a process of its own, so that neither tool warms the other up."""
    import torchvision

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    if tool.startswith("secateur"):
        from secateur import trace

        answer.send(seconds(lambda: trace(model, x) if tool == "secateur" else trace(model, x).groups, repeats))
        return
    import torch_pruning

    def build() -> Any:
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)

    if tool == "torch-pruning":
        answer.send(seconds(build, repeats))
    else:
        answer.send(seconds(lambda: list(build().get_all_groups()), repeats))


def in_process(*args: Any, timeout: float) -> list[tuple[float, float]] | None:
    """Run `measure` in a new process; None where it takes longer than the limit or dies."""
    here, there = mp.get_context("spawn").Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=measure, args=(*args, there))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(timeout) else None
    except EOFError:
        return None
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of torchvision models")
    parser.add_argument("--repeats", type=int, default=5, help="counted calls after the first one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one tool on one model")
    parser.add_argument("--output", default="trace_speed", help="name of the files in results/")
    args = parser.parse_args()
    rows = []
    for name in args.models:
        row: dict[str, Any] = {"model": name, "threads": args.threads, "repeats": args.repeats}
        for tool in TOOLS:
            timing = in_process(name, tool, args.repeats, args.threads, timeout=args.timeout)
            first, *others = timing or [(None, None)]
            row[f"{tool} first s"] = first[0]
            row[f"{tool} median s"] = statistics.median(cpu for cpu, _ in others) if others else None
            row[f"{tool} max s"] = max(cpu for cpu, _ in others) if others else None
            row[f"{tool} median on the clock s"] = statistics.median(clock for _, clock in others) if others else None
        for ours, peer in PEERS.items():
            if row[f"{ours} median s"] and row[f"{peer} median s"]:
                row[f"ratio {peer}"] = row[f"{peer} median s"] / row[f"{ours} median s"]
        row["timeout s"] = args.timeout
        row["machine"] = machine("torchvision", "torch-pruning")
        rows.append(row)
        print(row, flush=True)
    timings = ["secateur first s", *(f"{tool} median s" for tool in TOOLS)]
    write_rows(args.output, rows, ("model", *timings, *(f"ratio {peer}" for peer in PEERS.values())))


if __name__ == "__main__":
    main()
