"""What all quantizers share: a scale, whole numbers in its unit, and how these become bytes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from secateur.coding.base import Coding
from secateur.coding.codes import pack_codes, unpack_codes
from secateur.errors import ConfigError, FileError
from secateur.quantize.calibration import SMALLEST
from secateur.quantize.granularity import Granularity, read_granularity
from secateur.tensors import wide_dtype


class Quantizer(Coding):
    """weight = level * scale; the levels are the n_codes whole numbers lowest, lowest + step, lowest + 2 step, …

    In training, gradients pass straight through the choice of a level, and each scale learns as well: the scale in use
    is scale * 2 ^ gain, where `gain` starts at 0. So training a quantized model is quantization-aware training.

    Source: Bengio et al., "Estimating or Propagating Gradients Through Stochastic Neurons", arXiv:1308.3432, 2013
        (straight through); Esser et al., "Learned Step Size Quantization", ICLR 2020, section 2 (learned scales).
    Differs: the logarithm of a scale is learned, so that it stays positive and one learning rate suits all layers.

    Attributes:
        scale: of the shape that the granularity gives, in the weight's dtype. Levels are found in float32 or more.
        gain: a parameter of that shape.
        stored: names of the buffers of that shape that go into the file.
        step: between levels.
        fields: names of the settings beside the granularity.
    """

    stored: ClassVar[tuple[str, ...]] = ("scale",)
    step: ClassVar[int] = 1
    fields: ClassVar[frozenset[str]] = frozenset()
    scale: Tensor

    def __init__(self, scale: Tensor, granularity: Granularity) -> None:
        super().__init__()
        self.granularity = granularity
        self.register_buffer("scale", scale.detach().clone())
        self.gain = nn.Parameter(torch.zeros_like(scale))

    @property
    def n_codes(self) -> int:
        """How many levels there are."""
        raise NotImplementedError

    @property
    def lowest(self) -> Tensor | int:
        """The lowest level."""
        raise NotImplementedError

    def levels(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The level of each weight, with the gradients that training uses.

        Args:
            values: the stored buffers by name, of shapes that broadcast against the weight's.
        """
        raise NotImplementedError

    def forward(self, weight: Tensor) -> Tensor:
        """The nearest levels times their scale."""
        view = self.granularity.view(weight)
        scale = self._scale_in_use(weight.numel() / max(1, self.scale.numel()))
        values = {name: getattr(self, name) for name in self.stored} | {"scale": scale.clamp_min(SMALLEST)}
        return (self.levels(view.to(scale.dtype), values) * scale).to(weight.dtype).reshape(weight.shape)

    def settings(self) -> dict[str, Any]:
        """The granularity, and the fields of the class."""
        return {**{name: getattr(self, name) for name in sorted(self.fields)}, **self.granularity.settings()}

    @classmethod
    def blank(cls, weight: Tensor, settings: Mapping[str, Any]) -> Self:
        """All scales are 1."""
        own = {key: settings[key] for key in cls.fields if key in settings}
        if missing := sorted(cls.fields - own.keys()):
            raise ConfigError(f"A coding '{cls.kind}' needs {missing}, but has only {sorted(settings)}.")
        granularity = read_granularity({key: value for key, value in settings.items() if key not in cls.fields})
        ones = torch.ones(granularity.scale_shape(tuple(weight.shape)), dtype=weight.dtype, device=weight.device)
        return cls(ones, granularity, **own)

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """codes or entropy: uint8, see `pack_codes`; and the stored buffers, the trained gain in the scale."""
        view = self.granularity.view(weight.detach())
        scale = self._scale_in_use(weight.numel() / max(1, self.scale.numel())).detach()
        codes = ((view.to(scale.dtype) / scale.clamp_min(SMALLEST)).round() - self.lowest) / self.step
        values = {name: getattr(self, name) for name in self.stored}
        values["scale"] = scale.to(self.scale.dtype)
        return pack_codes(codes.reshape(-1).long(), self.n_codes) | {k: v.contiguous() for k, v in values.items()}

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """Take on the stored buffers, and put the levels times their scale in their places."""
        codes = unpack_codes(packed, self.n_codes, math.prod(shape))
        if packed.keys() - {"codes", "entropy"} != set(self.stored):
            raise FileError(f"A '{self.kind}' weight is stored with {self.stored}, not as {sorted(packed)}.")
        expected = self.granularity.scale_shape(shape)
        for name in self.stored:
            value = packed[name]
            if tuple(value.shape) != expected or not value.is_floating_point() or not self.is_allowed(name, value):
                raise FileError(f"The {name} of a '{self.kind}' weight of shape {shape} is damaged. Restore the file.")
            setattr(self, name, value.to(self.scale.device))
        self.gain = nn.Parameter(torch.zeros_like(self.scale), requires_grad=self.gain.requires_grad)
        view = self.granularity.view(codes.reshape(shape)).to(self.scale.device)
        scale = self._scale_in_use(1.0).detach()
        return ((view.to(scale.dtype) * self.step + self.lowest) * scale).to(self.scale.dtype).reshape(shape)

    def is_allowed(self, name: str, value: Tensor) -> bool:
        """Whether a buffer from a file may hold these values."""
        return bool((torch.isfinite(value) & (value >= 0)).all())

    def _scale_in_use(self, n_values: float) -> Tensor:
        """scale * 2 ^ gain, in float32 or more. The gain's gradient is divided by sqrt(n_values * highest level).

        It takes the values that the scale's own dtype has, since that is how it will be stored. Where it is 0, so is
        every level times it: a tiny number in its place would make subnormal ones, which processors are slow at.
        """
        dtype = wide_dtype(self.scale.dtype)
        factor = 1 / math.sqrt(max(1.0, n_values * (self.n_codes - 1) / 2))
        gain = self.gain.to(dtype)
        gain = gain * factor + (gain * (1 - factor)).detach()
        return (self.scale.to(dtype) * torch.exp2(gain)).to(self.scale.dtype).to(dtype)


def straight(values: Tensor, source: Tensor) -> Tensor:
    """`values`, with the gradients of `source`."""
    return values.detach() + (source - source.detach())
