"""The lists of networks are those of the benchmark."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(autouse=True)
def _same_weights() -> None:
    torch.manual_seed(0)
