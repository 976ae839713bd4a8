"""Seconds per phase of a job."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger("secateur")


class Clock:
    """Seconds per phase; each phase is logged when it starts, and phases of one name add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what runs inside towards a phase."""
        log.info("%s", name)
        start = time.perf_counter()
        try:
            yield
        finally:  # a step that fails has taken its time too
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - start, 3)
