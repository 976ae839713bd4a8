"""Does it work on my model? Half of every width goes, from every network of a zoo, by one tool.

Each network is pruned in a process of its own, on one thread, within a limit of processor time. One JSON row each:

    captured    the tool could follow the network; pruned: it made a smaller one
    forward     the pruned network runs; backward: gradients of a scalar loss are finite, in `backward_mode`
    verified    Secateur's proof holds (shapes of every operator, values by the numeric law); largest `difference`
    removed     fraction of the parameters that went, of those that are neither in an embedding (`nn.Embedding`) nor
                in a layer whose output is the model's output; parameters and MACs count everything
    frozen      why groups were left alone, with how many (Secateur); unknown: operators without a rule
    seconds     by phase, on the clock and (`cpu_seconds`) of this process alone; `total_s` is processor time of
                plan + apply + verify in a fresh process (a plan traces; `trace` is measured besides)

Rows are kept as they finish: `--resume` goes on after the last one, `--models` replaces rows, `--failed` repeats those
that are not as they should be. The summary of all zoos and tools is `results/prunability.txt`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import signal
import statistics
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from rows import RESULTS, machine, write_rows
from zoo import ZOOS, load
from zoo.judge import measure
from zoo.tools import TOOLS, Row

COLUMNS = (
    "model", "captured", "pruned", "forward", "backward", "verified", "difference", "removed", "parameters",
    "parameters_after", "macs", "macs_after", "total_s", "peak_mb", "error",
)  # fmt: skip
SUMMARY = (
    "zoo", "tool", "n", "captured", "pruned", "forward", "backward", "verified", ">= half removed", "median s",
    "worst s",
)  # fmt: skip
_CLOCK = 5  # the machine may be shared: a process may take this many times its limit on the clock


def in_process(zoo: str, name: str, tool: str, limit_s: float) -> Row:
    """The row of one network; where the process ends early, what it had sent and why it ended."""
    context = mp.get_context("forkserver")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(zoo, name, tool, limit_s, there))
    process.start()
    there.close()
    row: Row = {"zoo": zoo, "model": name, "tool": tool}
    end = time.monotonic() + _CLOCK * limit_s
    is_late = False
    try:
        while not row.get("done") and not is_late:
            is_late = not here.poll(max(0.0, end - time.monotonic()))
            row = row if is_late else here.recv()
    except EOFError:
        pass
    if not row.get("done") and process.is_alive():
        process.kill()
    process.join()
    if not row.pop("done", False):
        is_late |= process.exitcode == -signal.SIGXCPU
        row["error"] = f"more than {limit_s:g} s" if is_late else f"the process ended with {process.exitcode}"
    return {**row, "limit_s": limit_s, "machine": machine("torchvision", "timm", "transformers", *_packages(tool))}


def _packages(tool: str) -> tuple[str, ...]:
    return () if tool == "secateur" else (tool,)


def is_good(row: Row) -> bool:
    """True where nothing is left to be wished for."""
    proven = row.get("verified", False) or row["tool"] != "secateur"
    runs = row.get("forward") and row.get("backward") and "train_error" not in row
    return bool(proven and runs and (row.get("removed") or 0) >= 0.5)


def summary(rows: list[Row]) -> Row:
    """Counts over the rows of one zoo and tool; seconds are processor time of the networks that came through."""
    times = sorted(row["total_s"] for row in rows if "error" not in row)
    count = {key: sum(bool(r.get(key)) for r in rows) for key in ("captured", "pruned", "forward", "backward")}
    is_ours = rows[0]["tool"] == "secateur"
    half = [r for r in rows if r.get("forward") and (r.get("removed") or 0) >= 0.5 and (r["verified"] or not is_ours)]
    return {
        "zoo": rows[0]["zoo"],
        "tool": rows[0]["tool"],
        "n": len(rows),
        **count,
        "verified": sum(bool(r.get("verified")) for r in rows) if is_ours else None,
        ">= half removed": len(half),
        "median s": statistics.median(times) if times else None,
        "worst s": times[-1] if times else None,
        "machine": rows[0]["machine"],
    }


def read(zoo: str, tool: str) -> dict[str, Row]:
    path = RESULTS / f"prunability_{zoo}_{tool}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {row["model"]: row for row in rows}


def keep(zoo: str, tool: str, rows: dict[str, Row]) -> None:
    """Write what there is, in the zoo's order."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"prunability_{zoo}_{tool}.jsonl"
    path.write_text("".join(json.dumps(rows[name]) + "\n" for name in load(zoo).names() if name in rows))


def report(zoo: str, tool: str) -> None:
    """The table of one zoo and tool, then the summary of all."""
    rows = list(read(zoo, tool).values())
    if rows:
        write_rows(f"prunability_{zoo}_{tool}", rows, COLUMNS)
    found: list[dict[str, Any]] = [summary(list(some.values())) for z in ZOOS for t in TOOLS if (some := read(z, t))]
    write_rows("prunability", found, SUMMARY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", choices=ZOOS, required=True)
    parser.add_argument("--tool", choices=TOOLS, default="secateur")
    parser.add_argument("--models", nargs="+", help="only these; their rows are replaced")
    parser.add_argument("--limit-s", type=float, default=120, help="processor time of the tool, for one network")
    parser.add_argument("--jobs", type=int, default=1, help="networks at a time")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there and do the others")
    parser.add_argument("--failed", action="store_true", help="repeat the rows that are not as they should be")
    parser.add_argument("--report", action="store_true", help="only write the tables")
    args = parser.parse_args()
    rows = read(args.zoo, args.tool) if args.resume or args.failed or args.models else {}
    names = [] if args.report else args.models or load(args.zoo).names()
    if args.resume:
        names = [name for name in names if name not in rows]
    if args.failed:
        names = [name for name in names if name not in rows or not is_good(rows[name])]
    mp.get_context("forkserver").set_forkserver_preload(["secateur", "zoo.judge", *load(args.zoo).PRELOAD])
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(in_process, args.zoo, name, args.tool, args.limit_s) for name in names]
        for job in as_completed(jobs):
            row = job.result()
            rows = (
                {**read(args.zoo, args.tool), **rows, row["model"]: row} if args.models else {**rows, row["model"]: row}
            )
            keep(args.zoo, args.tool, rows)
            print({k: row.get(k) for k in (*COLUMNS, "problems", "train_error", "backward_error")}, flush=True)
    report(args.zoo, args.tool)


if __name__ == "__main__":
    main()
