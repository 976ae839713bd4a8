"""The networks that `benchmarks/prunability.py` prunes, in four lists. Weights are random, so nothing is downloaded.

Each module has `names()`, in the order that they are run in, and `build(name)`: a network and example inputs.
"""

from __future__ import annotations

import importlib
from types import ModuleType

ZOOS = ("torchvision", "timm", "transformers", "special")


def load(zoo: str) -> ModuleType:
    """The module of a zoo; its library is imported when a network is built."""
    return importlib.import_module(f"{__name__}.{zoo}")
