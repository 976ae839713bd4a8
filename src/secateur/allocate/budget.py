"""What may be kept, what it costs, and what may be chosen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from secateur.dims.cost import Cost
from secateur.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The fraction of the dense model that may be kept. Where several are given, all of them hold.

    Args:
        width: units, over the units of all groups that are scored.
        params: parameters of the whole model.
        macs: multiply-accumulates of the whole model.

    >>> Budget(macs=0.5).asked()
    {'macs': 0.5}
    >>> Budget()
    Traceback (most recent call last):
    secateur.errors.ConfigError: An empty budget keeps everything. Give at least one of width, params, macs.
    """

    width: float | None = None
    params: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        asked = self.asked()
        if not asked:
            raise ConfigError("An empty budget keeps everything. Give at least one of width, params, macs.")
        for name, value in asked.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
                raise ConfigError(f"{name}={value!r} is outside (0, 1]. It is the fraction kept: 0.5 keeps half.")

    def asked(self) -> dict[str, float]:
        """Return the fractions that are given, by name."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in self.asked().items())


@dataclass(frozen=True)
class Space:
    """What may be chosen: how many units each group keeps, and what the model then costs.

    Args:
        sizes: the dense width of each group that may shrink, in the order of the network.
        cost: the model's cost when group g keeps counts[g] units; a group that is not mentioned keeps all.
            It never grows when a count falls.
        ties: groups that keep the same fraction: counts[a] / sizes[a] == counts[b] / sizes[b], exactly.

    >>> Space({"a": 4}, cost=lambda counts: Cost(0, 0), ties=(("a", "b"),))
    Traceback (most recent call last):
    secateur.errors.ConfigError: A tie names 'b', which is no group. Known: a.
    """

    sizes: Mapping[str, int]
    cost: Callable[[Mapping[str, int]], Cost]
    ties: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            if size < 1:
                raise ConfigError(f"Group '{name}' has size {size}. A group has at least one unit.")
        unknown = [name for tie in self.ties for name in tie if name not in self.sizes]
        if unknown:
            known = ", ".join(self.sizes) or "none"
            raise ConfigError(f"A tie names {', '.join(map(repr, unknown))}, which is no group. Known: {known}.")
