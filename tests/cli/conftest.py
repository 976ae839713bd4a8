"""The command line, in this process where that is enough and as a real process where it is not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from secateur.cli import main as cli


@dataclass(frozen=True)
class Result:
    """What a run gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    def call(*args: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["secateur", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def process(tmp_path: Path) -> Callable[..., Result]:
    def call(*args: object, stdout: object = subprocess.PIPE) -> Result:
        command = [sys.executable, "-m", "secateur.cli", *map(str, args)]
        done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=200)
        return Result(done.returncode, done.stdout or "", done.stderr)

    return call
