"""What a sensitivity scan found, as plain data, and the file that keeps it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from secateur._version import __version__
from secateur.allocate import ErrorCurve
from secateur.errors import FileError
from secateur.files.atomic import new_file
from secateur.files.decode import DecodeError, decode


@dataclass(frozen=True)
class Scanned:
    """One group: its units from the last to go to the first, and the rise of the loss at the widths that were tried.

    Args:
        order: a width of k keeps order[:k].
        kept: the widths, rising; the full one is not among them.
        rise: the loss at each of them minus that of the dense model.
    """

    order: tuple[int, ...]
    kept: tuple[int, ...]
    rise: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity:
    """What a scan found: the loss of the dense model (0 for the KL divergence), and its rise by group."""

    dense: float
    groups: dict[str, Scanned]

    def curves(self) -> dict[str, ErrorCurve]:
        """Return the rise as error curves: straight between the widths that were tried, and on below the lowest.

        >>> found = Sensitivity(0.5, {"a": Scanned(order=(1, 0, 2), kept=(1, 2), rise=(0.9, 0.1))})
        >>> [round(e, 3) for e in found.curves()["a"].errors.tolist()]
        [1.7, 0.9, 0.1, 0.0]
        """
        return {name: _curve(scanned) for name, scanned in self.groups.items()}


def write_sensitivity(found: Sensitivity, path: Path) -> None:
    """Write a scan as JSON; the file appears whole or not at all. Raises FileError."""
    with new_file(path) as partial:
        partial.write_text(json.dumps({"version": __version__, **dataclasses.asdict(found)}), encoding="utf-8")


def read_sensitivity(path: Path) -> Sensitivity:
    """Read a scan, strictly. Raises FileError for what is no scan."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict):
            raise DecodeError(f"it holds a {type(data).__name__}")
        data.pop("version", None)
        found: Sensitivity = decode(Sensitivity, data, "sensitivity")
    except (OSError, ValueError, DecodeError) as error:
        raise FileError(f"'{path}' is no sensitivity scan: {error}. Delete it to measure again.") from error
    return found


def _curve(scanned: Scanned) -> ErrorCurve:
    size = len(scanned.order)
    xs = torch.tensor([*scanned.kept, size], dtype=torch.float64)
    ys = torch.tensor([*scanned.rise, 0.0], dtype=torch.float64)
    at = torch.arange(size + 1, dtype=torch.float64)
    if len(xs) == 1:  # a group of one unit: no width was tried
        return ErrorCurve(torch.zeros(size + 1), torch.tensor(scanned.order))
    left = (torch.searchsorted(xs, at, right=True) - 1).clamp(0, len(xs) - 2)
    slope = (ys[left + 1] - ys[left]) / (xs[left + 1] - xs[left])
    errors = ys[left] + slope * (at - xs[left])
    errors[-1] = 0.0
    return ErrorCurve(errors, torch.tensor(scanned.order))
