"""Uniform quantizers: 2 to 8 bits, levels at equal distances."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from secateur.coding.base import CODINGS
from secateur.errors import ConfigError
from secateur.quantize.calibration import MINMAX, Calibration, fit_grid
from secateur.quantize.granularity import Granularity
from secateur.quantize.quantizer import Quantizer, straight


class Uniform(Quantizer):
    """level = clamp(round(weight / scale), lowest, lowest + n_codes - 1).

    Gradients pass where the weight is inside the range; a clamped weight moves the scale alone.
    """

    fields = frozenset({"bits"})

    def __init__(self, scale: Tensor, granularity: Granularity, bits: int) -> None:
        super().__init__(scale, granularity)
        self.bits = check_bits(bits)

    @classmethod
    def fit(cls, weight: Tensor, granularity: Granularity, bits: int, calibration: Calibration = MINMAX) -> Self:
        """The coding whose range the calibration chooses for each row of values that share a scale."""
        raise NotImplementedError

    def levels(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The nearest level; of two equally near ones the even one."""
        inside = self.clamp(weight / values["scale"], values)
        return straight(inside.round(), inside)

    def clamp(self, u: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """Weights in units of the scale, between the lowest and the highest level."""
        raise NotImplementedError


@CODINGS.register("symmetric")
class Symmetric(Uniform):
    """Levels from -(2^(bits - 1) - 1) to 2^(bits - 1) - 1, with 0 in the middle.

    >>> from secateur.quantize.granularity import PerTensor
    >>> coding = Symmetric(torch.tensor([0.5]), PerTensor(), bits=3)
    >>> coding(torch.tensor([-9.0, -0.3, 0.1, 0.8]))
    tensor([-1.5000, -0.5000, 0.0000, 1.0000], grad_fn=<ViewBackward0>)
    """

    kind = "symmetric"

    @classmethod
    def fit(cls, weight: Tensor, granularity: Granularity, bits: int, calibration: Calibration = MINMAX) -> Self:
        """scale = largest magnitude in range / highest level."""
        shape = granularity.scale_shape(tuple(weight.shape))
        grid = fit_grid(granularity.rows(weight.detach()), symmetric_codes(check_bits(bits)), True, calibration)
        return cls(grid.scale.to(weight.dtype).reshape(shape), granularity, bits)

    @property
    def n_codes(self) -> int:
        """2^bits - 1."""
        return symmetric_codes(self.bits)

    @property
    def lowest(self) -> int:
        """-(2^(bits - 1) - 1)."""
        return -(self.n_codes // 2)

    def clamp(self, u: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """By two numbers."""
        return u.clamp(self.lowest, -self.lowest)


@CODINGS.register("affine")
class Affine(Uniform):
    """2^bits levels, 0 among them: from -zero_point to 2^bits - 1 - zero_point.

    >>> from secateur.quantize.granularity import PerTensor
    >>> coding = Affine(torch.tensor([0.5]), PerTensor(), bits=2, zero_point=torch.tensor([1.0]))
    >>> coding(torch.tensor([-9.0, -0.3, 0.1, 0.8])).detach()
    tensor([-0.5000, -0.5000, 0.0000, 1.0000])
    """

    kind = "affine"
    stored: ClassVar[tuple[str, ...]] = ("scale", "zero_point")
    zero_point: Tensor

    def __init__(self, scale: Tensor, granularity: Granularity, bits: int, zero_point: Tensor | None = None) -> None:
        super().__init__(scale, granularity, bits)
        if bits == 8 and scale.dtype == torch.bfloat16:
            raise ConfigError("A bfloat16 can't hold 256 levels. Take 'symmetric', or 7 bits, or other weights.")
        # whole numbers as floats: a pruned axis may not slice what indexes something, as integer buffers do
        self.register_buffer("zero_point", torch.zeros_like(scale) if zero_point is None else zero_point.to(scale))

    @classmethod
    def fit(cls, weight: Tensor, granularity: Granularity, bits: int, calibration: Calibration = MINMAX) -> Self:
        """scale = (highest - lowest value in range) / (n_codes - 1); the range is made to hold 0."""
        shape = granularity.scale_shape(tuple(weight.shape))
        grid = fit_grid(granularity.rows(weight.detach()), 1 << check_bits(bits), False, calibration)
        scale, zero = (t.to(weight.dtype).reshape(shape) for t in (grid.scale, -grid.lowest))
        return cls(scale, granularity, bits, zero)

    @property
    def n_codes(self) -> int:
        """2^bits."""
        return 1 << self.bits

    @property
    def lowest(self) -> Tensor:
        """-zero_point."""
        return -self.zero_point

    def clamp(self, u: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """By tensors."""
        return u.clamp(-values["zero_point"], self.n_codes - 1 - values["zero_point"])

    def is_allowed(self, name: str, value: Tensor) -> bool:
        """Zero points are codes."""
        is_code = name != "zero_point" or bool(((value == value.round()) & (value < self.n_codes)).all())
        return is_code and super().is_allowed(name, value)


def symmetric_codes(bits: int) -> int:
    """The levels that are symmetric about 0: one fewer than there are codes.

    >>> symmetric_codes(4)
    15
    """
    return (1 << bits) - 1


def check_bits(bits: int) -> int:
    """Return bits. Raises ConfigError outside [2, 8]."""
    if type(bits) is not int or not 2 <= bits <= 8:
        raise ConfigError(f"bits={bits!r} is no whole number in [2, 8]. For one bit there is 'binary'.")
    return bits
