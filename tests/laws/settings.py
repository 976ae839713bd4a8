"""How many examples: few and always the same ones, or SECATEUR_THOROUGH times as many, fresh ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

THOROUGH = int(os.environ.get("SECATEUR_THOROUGH", "0"))


def some(examples: int) -> settings:
    """Settings for a law that deserves this many examples in the fast run."""
    return settings(
        max_examples=examples * max(THOROUGH, 1),
        derandomize=not THOROUGH,
        database=None,
        deadline=None,
        print_blob=False,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
