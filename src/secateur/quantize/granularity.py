"""Granularity: which values of a weight share one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import Tensor

from secateur.errors import ConfigError, RegistryError
from secateur.registry import Registry

GRANULARITIES = Registry[str, type["Granularity"]]("granularity")


class Granularity:
    """Values that share a scale. A subclass is a frozen dataclass."""

    name: ClassVar[str]

    def view(self, weight: Tensor) -> Tensor:
        """The weight in a shape that scales broadcast against; `reshape` to the weight's shape undoes it."""
        return weight

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the scales of a weight of that shape.

        Raises:
            ConfigError: such a weight can't be shared out like this.
        """
        raise NotImplementedError

    def rows(self, weight: Tensor) -> Tensor:
        """(n_scales, n_values): the values of each scale, in the order of the scales."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """As JSON; `read_granularity` undoes it."""
        return {"granularity": self.name, **asdict(self)}  # type: ignore[call-overload]


@GRANULARITIES.register("per_tensor")
@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale for all values (element-wise quantization).

    >>> PerTensor().scale_shape((8, 3, 5, 5))
    (1, 1, 1, 1)
    """

    name: ClassVar[str] = "per_tensor"

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As many ones as the weight has axes."""
        return (1,) * len(shape)

    def rows(self, weight: Tensor) -> Tensor:
        """One row."""
        return weight.reshape(1, -1)


@GRANULARITIES.register("per_channel")
@dataclass(frozen=True)
class PerChannel(Granularity):
    """One scale for each output channel (multi-channel quantization).

    Args:
        axis: of the output channels: 0, but 1 in a transposed convolution.

    >>> PerChannel().scale_shape((8, 3, 5, 5))
    (8, 1, 1, 1)
    """

    name: ClassVar[str] = "per_channel"
    axis: int = 0

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The width of the axis, among ones."""
        if not 0 <= self.axis < len(shape):
            raise ConfigError(f"A weight of shape {shape} has no axis {self.axis}.")
        return tuple(n if i == self.axis else 1 for i, n in enumerate(shape))

    def rows(self, weight: Tensor) -> Tensor:
        """A row for each channel."""
        moved = weight.movedim(self.axis, 0)
        return moved.reshape(len(moved), -1)


@GRANULARITIES.register("per_group")
@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale for each run of `group_size` inputs of a channel; a convolution's inputs are (channel, *kernel).

    >>> PerGroup(25).scale_shape((8, 3, 5, 5))
    (8, 3, 1)
    """

    name: ClassVar[str] = "per_group"
    group_size: int = 64

    def __post_init__(self) -> None:
        if self.group_size < 1:
            raise ConfigError(f"group_size={self.group_size} is less than 1.")

    def view(self, weight: Tensor) -> Tensor:
        """(out, n_groups, group_size)."""
        return weight.reshape(weight.shape[0], -1, self.group_size)

    def scale_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """(out, n_groups, 1)."""
        n_inputs = math.prod(shape[1:])
        if n_inputs % self.group_size:
            raise ConfigError(f"{n_inputs} inputs can't be cut into groups of group_size={self.group_size}.")
        return (shape[0], n_inputs // self.group_size, 1)

    def rows(self, weight: Tensor) -> Tensor:
        """A row for each group, the groups of the first channel first."""
        return weight.reshape(-1, self.group_size)


def read_granularity(settings: Mapping[str, Any]) -> Granularity:
    """Undo `Granularity.settings`.

    Raises:
        ConfigError: the name or a field is unknown, or is no whole number.

    >>> read_granularity({"granularity": "per_group", "group_size": 32})
    PerGroup(group_size=32)
    """
    fields = {key: value for key, value in settings.items() if key != "granularity"}
    if any(type(value) is not int for value in fields.values()):
        raise ConfigError(f"The granularity {dict(settings)} holds what is no whole number.")
    try:
        return GRANULARITIES[settings["granularity"]](**fields)
    except (KeyError, TypeError, RegistryError) as error:
        raise ConfigError(f"{dict(settings)} is no granularity: {error}.") from error
