"""Running a grid: trainings first, then cells, several at a time, each kept as soon as it is finished."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.compare.cells import Cell, Grid, Start
from secateur.compare.rows import Row
from secateur.compare.store import Store
from secateur.compare.work import run_cell, train_start
from secateur.errors import ConfigError
from secateur.train.progress import progress_bar

log = logging.getLogger("secateur")


@dataclass(frozen=True, kw_only=True)
class Effort:
    """What a run took. Cells and trainings that were there already are not in it."""

    n_jobs: int
    n_cells: int  # carried out in this run
    n_cached: int  # cells that were there
    n_trained: int  # networks trained from nothing
    seconds: float
    seconds_working: float  # training, scoring, evaluation and timing, over all processes

    @property
    def overhead(self) -> float:
        """The part of the processes' time that went elsewhere: reading, cutting, starting, waiting for each other."""
        return max(0.0, 1 - self.seconds_working / (self.n_jobs * self.seconds)) if self.seconds_working else 0.0

    def __str__(self) -> str:
        return (
            f"{self.n_cells} cells and {self.n_trained} trainings in {self.seconds:.0f} s with {self.n_jobs} jobs,"
            f" {self.n_cached} cells were there; {self.overhead:.1%} of the time outside training, scoring and"
            " evaluation"
        )


@dataclass(frozen=True)
class Compared:
    """The rows of cells, in their order, and what they took."""

    grid: Grid
    rows: tuple[Row, ...]
    effort: Effort


def compare(
    grid: Grid, folder: Path | str, *, cells: Sequence[Cell] | None = None, n_jobs: int = 1, progress: bool = True
) -> Compared:
    """Carry out every cell of a grid that isn't done yet.

    Args:
        grid: what to compare.
        folder: of finished cells and trained networks. A run that was killed, and a grid that shares cells with an
            earlier one, go on from what is there.
        cells: some of the grid's; None: all of them.
        n_jobs: processes, each on one thread.
        progress: draw a bar with the time left on stderr, if that is a terminal.
    Raises:
        ConfigError, DataError: the grid or its data is at fault. A technique that can't be used on a model is not:
            its row says why.
    """
    if n_jobs < 1:
        raise ConfigError(f"n_jobs={n_jobs} must be at least 1.")
    begin = time.perf_counter()
    store = Store(Path(folder).absolute(), grid)
    cells = grid.cells() if cells is None else list(cells)
    done = {cell: row for cell in cells if (row := store.row(cell)) is not None}
    missing = [cell for cell in cells if cell not in done]
    needed = dict.fromkeys(start for cell in missing for start in (cell.dense, cell.start))
    starts = [start for start in needed if not store.has_start(start)]
    log.info("%d cells, of which %d are there; %d networks to train", len(cells), len(done), len(starts))
    spent: list[tuple[float, float]] = []
    with progress_bar(len(starts) + len(missing), is_shown=progress) as advance, _pool(n_jobs) as parallel:
        for start, seconds in parallel(train_start, starts, grid, store):
            spent.append(seconds)
            advance(f"train {start.model}")
        for cell, row in parallel(run_cell, missing, grid, store):
            done[cell] = row
            spent.append((row.seconds or 0.0, row.seconds_outside or 0.0))
            advance(f"{cell.model}: {cell.pruning}, {cell.quantization}")
    effort = Effort(
        n_jobs=n_jobs,
        n_cells=len(missing),
        n_cached=len(cells) - len(missing),
        n_trained=len(starts),
        seconds=time.perf_counter() - begin,
        seconds_working=sum(seconds - outside for seconds, outside in spent),
    )
    log.info("%s", effort)
    return Compared(grid, tuple(done[cell] for cell in cells), effort)


Work = Callable[[Any, Grid, Store], Any]


@contextmanager
def _pool(n_jobs: int) -> Iterator[Callable[[Work, Sequence[Cell | Start], Grid, Store], Iterator[tuple[Any, Any]]]]:
    """Yield a function that gives (item, result) of each item as it is finished, in any order."""
    from joblib import Parallel, delayed

    with Parallel(n_jobs=n_jobs, return_as="generator_unordered", pre_dispatch="2*n_jobs", batch_size=1) as pool:

        def run(work: Work, items: Sequence[Cell | Start], grid: Grid, store: Store) -> Iterator[tuple[Any, Any]]:
            yield from pool(delayed(_quiet)(work, item, grid, store) for item in items)

        yield run


def _quiet(work: Work, item: Any, grid: Grid, store: Store) -> tuple[Any, Any]:
    """What is carried out a thousand times does not log its phases."""
    level = log.level
    log.setLevel(logging.WARNING)
    try:
        return item, work(item, grid, store)
    finally:
        log.setLevel(level)
