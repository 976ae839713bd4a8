"""Times of operators on this machine, kept in a file between processes.

The file belongs to one machine, thread count and version of torch, and says so; another one has another file. It is in
`$XDG_CACHE_HOME/secateur`, or `~/.cache/secateur`. Delete it to measure again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import secrets
from pathlib import Path

import torch

log = logging.getLogger("secateur")


def identity(device: torch.device) -> dict[str, str]:
    """What times depend on besides the operator: processor, cores, threads, torch."""
    return {
        "processor": _processor() if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "device": device.type,
        "torch": torch.__version__,
        "system": platform.platform(),
    }


class TimeCache:
    """`times`: milliseconds by the text of a call, as the file of this machine has them. `path` is that file."""

    def __init__(self, device: torch.device) -> None:
        self.machine = identity(device)
        digest = hashlib.sha256(json.dumps(self.machine, sort_keys=True).encode()).hexdigest()
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.path = Path(home) / "secateur" / f"latency-{digest[:16]}.json"
        self.times = self._read()
        self._n_read = len(self.times)

    def save(self) -> None:
        """Write what is new. Where the system refuses, the log says so, and the next process measures again."""
        if len(self.times) == self._n_read:
            return
        partial = self.path.with_name(f"{self.path.name}.{secrets.token_hex(4)}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps({"machine": self.machine, "ms": self.times}, indent=0), encoding="utf-8")
            partial.replace(self.path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            log.warning("times of operators could not be kept in '%s': %s", self.path, error)

    def _read(self) -> dict[str, float]:
        """What the file holds; nothing where there is none, or where it is no such file of this machine."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            if data["machine"] == self.machine:
                return {str(text): float(ms) for text, ms in data["ms"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("times of operators in '%s' can't be read, so they are measured again: %s", self.path, error)
        return {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
