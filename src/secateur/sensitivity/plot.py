"""The plot of a sensitivity scan: points that can be tested, and drawing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.sensitivity.found import Sensitivity


@dataclass(frozen=True)
class SensitivityPoints:
    """One line per group, most sensitive at half its width first: (name, fractions kept, rise of the loss)."""

    lines: tuple[tuple[str, tuple[float, ...], tuple[float, ...]], ...]
    dense: float


def sensitivity_points(found: Sensitivity) -> SensitivityPoints:
    """Return what the plot shows.

    >>> from secateur.sensitivity.found import Scanned
    >>> sensitivity_points(Sensitivity(0.5, {"a": Scanned((1, 0), (1,), (0.25,))})).lines
    (('a', (0.5, 1.0), (0.25, 0.0)),)
    """
    curves = found.curves()
    lines = [
        (name, (*(k / len(s.order) for k in s.kept), 1.0), (*s.rise, 0.0))
        for name, s in sorted(
            found.groups.items(), key=lambda item: -float(curves[item[0]].errors[len(item[1].order) // 2])
        )
    ]
    return SensitivityPoints(tuple(lines), found.dense)


def draw_sensitivity(points: SensitivityPoints, ax: Any) -> None:
    """Draw the lines on a matplotlib axis, with the dense model as the line at 0."""
    ax.axhline(0.0, color="0.6", linewidth=1, label=f"dense ({points.dense:.4g})")
    for name, kept, rise in points.lines:
        ax.plot(kept, rise, marker="o", markersize=3, label=name)
    ax.set_xlabel("fraction of the group's units kept")
    ax.set_ylabel("rise of the loss")
    ax.legend(fontsize="small")
