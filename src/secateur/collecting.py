"""Python's garbage collector, held back for a while."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Hold the collector back where many objects are made that stay: it would look at all of them, again and again.

    They go to the oldest generation as they are, for otherwise the next object that is made would have it look at once.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # what is frozen stays so
            gc.freeze()
            gc.unfreeze()
        if was_collecting:
            gc.enable()
