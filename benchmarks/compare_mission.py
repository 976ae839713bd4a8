"""The mission's experiment as one command: `secateur compare --preset mission`, timed from an empty folder.

The command runs in a process of its own. `seconds` is what its clock showed, start of Python included; `cpu seconds` is
what it and its workers computed; `quiet seconds` is the latter shared by the jobs, which is what a machine that does
nothing else would take, about: on a busy one (`load before`, runnable processes) the clock shows more. `outside` is the
part of the processes' time that went elsewhere than into training, scoring and evaluation, as the command itself says.
A second table has the best technique of each budget beside the baselines.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rows import machine, write_rows
from secateur.compare.rows import rows_from_json
from secateur.compare.summary import highlights, summarise

COLUMNS = (
    *("jobs", "cells", "trainings", "not carried out", "seconds", "cpu seconds", "quiet seconds", "outside"),
    *("load before", "page bytes"),
)
BEST = ("model", "technique", "best", "measure", "test", "test std", "train", "macs", "size bytes", "latency ms")


def timed(command: list[str]) -> dict[str, Any]:
    """Run a command; how long it took, and what it and its workers computed."""
    load, start = os.getloadavg()[0], time.perf_counter()
    subprocess.run(command, check=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = used.ru_utime + used.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu seconds": cpu_seconds, "load before": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep rows and page there; it must be empty, or not there yet")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = args.folder or Path(temporary)
        if folder.exists() and any(folder.iterdir()):
            parser.error(f"{folder} is not empty: finished cells would be taken from it")
        command = [sys.executable, "-m", "secateur.cli", "--quiet", "compare", "--preset", "mission"]
        found = timed([*command, "--jobs", str(args.jobs), "--output", str(folder)])
        effort = json.loads((folder / "summary.json").read_text())["effort"]
        rows = rows_from_json((folder / "rows.json").read_text())
        page_bytes = (folder / "compare.html").stat().st_size
    facts = {
        "jobs": args.jobs,
        "cells": effort["n_cells"],
        "trainings": effort["n_trained"],
        "not carried out": sum(not row.is_done for row in rows),
        **found,
        "quiet seconds": found["cpu seconds"] / args.jobs,
        "outside": effort["overhead"],
        "page bytes": page_bytes,
        "machine": machine("joblib", "plotly"),
    }
    write_rows("compare_mission", [facts], COLUMNS)
    lines = summarise(rows)
    best = [
        {
            **{name: getattr(line, name.replace(" ", "_")) for name in BEST if name != "best"},
            "best": line.is_best,
            "machine": facts["machine"],
        }
        for model in dict.fromkeys(line.model for line in lines)
        for line in highlights([line for line in lines if line.model == model])
    ]
    write_rows("compare_mission_best", best, BEST)


if __name__ == "__main__":
    main()
