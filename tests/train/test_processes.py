"""Two processes compute what one does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = """
import sys, torch
from secateur.data import ArrayDataset, load_data
from secateur.models import mlp
from secateur.train import TrainConfig, fit_

splits = load_data("digits")
torch.manual_seed(0)
model = mlp(64, hidden=(16,))
config = TrainConfig(epochs=2, batch_size=32, lr=0.01, optimizer="sgd", num_threads=1)
fit_(model, splits.train.subset(range(256)), splits.val, config, checkpoint=sys.argv[1])
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "ACCELERATE_USE_CPU": "1", "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, prefix in (("one", []), ("two", launch)):
        command = [sys.executable, *prefix, str(tmp_path / "script.py"), str(tmp_path / name)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    moved = one["model.linear.weight"].std()
    assert moved > 0
    torch.testing.assert_close(two, one, rtol=1e-4, atol=1e-5)
