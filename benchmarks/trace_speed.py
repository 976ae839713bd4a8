"""Time to find what must shrink together: `secateur.trace` against Torch-Pruning's dependency graph, in one run.

Both start from the same model on the CPU and the same example input, each in a process of its own, so that neither
warms the other up. The processes take turns, so that a slow minute of the machine slows all of them; in its turn each
makes one call that isn't counted, since the others had the caches, then some that are, of which medians are kept.
Times are processor time of the tool's own process, which runs one thread; the clock is written down too.
Each tool is timed twice: `trace(model, x)` against building the peer's graph, which tells how neighbouring
layers hang together; and both with the list of groups, which tells what must shrink together.
"""

from __future__ import annotations

import argparse
import contextlib
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


def call(name: str, tool: str) -> Callable[[], Any]:
    """What is timed."""
    import torchvision

    torch.manual_seed(0)
    model = torchvision.models.get_model(name, weights=None).eval()
    x = torch.randn(1, 3, 224, 224)
    if tool.startswith("secateur"):
        from secateur import trace

        return lambda: trace(model, x) if tool == "secateur" else trace(model, x).groups
    import torch_pruning

    def build() -> Any:
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)

    return build if tool == "torch-pruning" else lambda: list(build().get_all_groups())


def serve(name: str, tool: str, threads: int, pipe: Any) -> None:
    """Make as many calls as asked for, and answer with the (processor time, time on the clock) of each."""
    torch.set_num_threads(threads)
    run = call(name, tool)
    while True:
        times = []
        for _ in range(pipe.recv()):
            start, clock = time.process_time(), time.perf_counter()
            run()
            times.append((time.process_time() - start, time.perf_counter() - clock))
        pipe.send(times)


class Worker:
    """A process that serves one tool; it is given up for good where a call takes longer than the limit."""

    def __init__(self, name: str, tool: str, threads: int, timeout: float) -> None:
        context = mp.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=serve, args=(name, tool, threads, there), daemon=True)
        self.process.start()
        there.close()
        self.timeout = timeout

    def turn(self, n_calls: int) -> list[tuple[float, float]]:
        """Times of some calls; none where they took longer than the limit, now or before."""
        with contextlib.suppress(EOFError, BrokenPipeError):  # it has ended
            self.pipe.send(n_calls)
            if self.pipe.poll(self.timeout):
                return self.pipe.recv()
        self.end()
        return []

    def end(self) -> None:
        self.process.kill()
        self.process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=MODELS, help="names of torchvision models")
    parser.add_argument("--turns", type=int, default=12, help="of each process; machines have slow minutes")
    parser.add_argument("--repeats", type=int, default=7, help="counted calls of a turn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one tool on one model")
    parser.add_argument("--output", default="trace_speed", help="name of the files in results/")
    args = parser.parse_args()
    rows = []
    for name in args.models:
        row: dict[str, Any] = {"model": name, "threads": args.threads, "turns": args.turns, "repeats": args.repeats}
        workers = {tool: Worker(name, tool, args.threads, args.timeout) for tool in TOOLS}
        firsts = {tool: worker.turn(1) for tool, worker in workers.items()}
        times: dict[str, list[tuple[float, float]]] = {tool: [] for tool in TOOLS}
        for _ in range(args.turns):
            for tool, worker in workers.items():
                times[tool] += worker.turn(1 + args.repeats)[1:]
        for tool, worker in workers.items():
            worker.end()
            others = times[tool]
            row[f"{tool} first s"] = firsts[tool][0][0] if firsts[tool] else None
            row[f"{tool} best s"] = min(cpu for cpu, _ in others) if others else None
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
