"""What may be kept, what it costs, and what may be chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields

from secateur.dims.cost import Cost
from secateur.errors import ConfigError

MEASURES = {
    "width": "width",
    "params": "params",
    "macs": "macs",
    "size": "size_bytes",
    "activations": "activation_bytes",
    "latency": "latency_ms",
}
"""What a fraction is a fraction of: each name without a unit, with the field of `Cost` (or the width) that it means."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What may be kept: a fraction of the dense model, or with its unit. Where several are given, all of them hold.

    Args:
        width: units, over the units of all groups that are scored.
        params: parameters of the whole model.
        macs: multiply-accumulates of the whole model.
        size: bytes of the parameters and buffers, in their own dtypes.
        size_bytes: the same, in bytes.
        activations: peak activation memory of one forward on the example inputs (see `secateur.dims.memory`).
        activation_bytes: the same, in bytes.
        latency: time of one forward on the example inputs, as predicted from operators timed on this machine.
        latency_ms: the same, in milliseconds.
        drop_points: percentage points of a metric that may be lost against dense; `compress` searches for it.

    >>> Budget(macs=0.5, latency_ms=3).asked()
    {'macs': 0.5, 'latency_ms': 3}
    >>> Budget(macs=3)
    Traceback (most recent call last):
    secateur.errors.ConfigError: macs=3 is outside (0, 1]. It is the fraction kept: 0.5 keeps half.
    """

    width: float | None = None
    params: float | None = None
    macs: float | None = None
    size: float | None = None
    size_bytes: float | None = None
    activations: float | None = None
    activation_bytes: float | None = None
    latency: float | None = None
    latency_ms: float | None = None
    drop_points: float | None = None

    def __post_init__(self) -> None:
        asked = self.asked()
        if not asked:
            names = ", ".join(f.name for f in fields(self))
            raise ConfigError(f"An empty budget keeps everything. Give at least one of {names}.")
        for name, value in asked.items():
            if fault := _fault(name, value):
                raise ConfigError(f"{name}={value!r} {fault}")

    def asked(self) -> dict[str, float]:
        """Return what is given, by name."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def is_timed(self) -> bool:
        """True where the budget can't be met without measuring time."""
        return self.latency is not None or self.latency_ms is not None

    def __str__(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.asked().items())


def _fault(name: str, value: object) -> str | None:
    """Say why a budget can't have this value; None where it can."""
    number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else value
    if name in MEASURES:
        return None if 0 < number <= 1 else "is outside (0, 1]. It is the fraction kept: 0.5 keeps half."
    if name == "drop_points":
        return None if 0 <= number < 100 else "is outside [0, 100). 0.5 allows 92.5 % where dense has 93 %."
    return None if 0 < number < math.inf else "is no positive number. The end of its name is its unit."


@dataclass(frozen=True)
class Space:
    """What may be chosen: how many units each group keeps, and what the model then costs.

    Args:
        sizes: the dense width of each group that may shrink, in the order of the network.
        cost: the model's cost when group g keeps counts[g] units; a group that is not mentioned keeps all.
            It never grows when a count falls.
        ties: groups that keep the same fraction: counts[a] / sizes[a] == counts[b] / sizes[b], exactly.
        kinds: what kind each group is, for methods that compare only groups of one kind; "" where it is left out.

    >>> Space({"a": 4}, cost=lambda counts: Cost(0, 0), ties=(("a", "b"),))
    Traceback (most recent call last):
    secateur.errors.ConfigError: A tie names 'b', which is no group. Known: a.
    """

    sizes: Mapping[str, int]
    cost: Callable[[Mapping[str, int]], Cost]
    ties: tuple[tuple[str, ...], ...] = ()
    kinds: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if size < 1:
                raise ConfigError(f"Group '{name}' has size {size}. A group has at least one unit.")
        unknown = [name for tie in self.ties for name in tie if name not in self.sizes]
        if unknown:
            known = ", ".join(self.sizes) or "none"
            raise ConfigError(f"A tie names {', '.join(map(repr, unknown))}, which is no group. Known: {known}.")
