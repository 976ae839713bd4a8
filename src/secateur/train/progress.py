"""The progress bar: on stderr, on a terminal, on the main process; otherwise nothing is drawn and rich not imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[str], None]  # one step done; the text stands beside the bar


@contextmanager
def progress_bar(n_steps: int, *, done: int = 0, is_shown: bool = True) -> Iterator[Advance]:
    """Yield a function that moves the bar by one step.

    >>> with progress_bar(2, is_shown=False) as advance:
    ...     advance("epoch 1/1, loss 0.5")
    """
    if not (is_shown and sys.stderr.isatty()):
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_steps, completed=done)
        yield lambda text: bar.update(task, advance=1, description=text)
