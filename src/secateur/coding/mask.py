"""Masks: weights that are zero and stay zero."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from secateur.coding.base import CODINGS, Coding
from secateur.coding.codes import pack_codes, unpack_codes
from secateur.errors import ConfigError, FileError


@CODINGS.register("mask")
class Mask(Coding):
    """weight[i] where mask[i], else 0. Stored as a bitmask and the values that are left.

    >>> mask = Mask(torch.tensor([True, False, True]))
    >>> mask(torch.tensor([1.0, 2.0, 3.0]))
    tensor([1., 0., 3.])
    >>> mask.pack(torch.tensor([1.0, 0.0, 3.0]))
    {'codes': tensor([160], dtype=torch.uint8), 'values': tensor([1., 3.])}
    """

    kind: ClassVar[str] = "mask"
    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.bool())

    def forward(self, weight: Tensor) -> Tensor:
        """weight * mask. A free weight that is NaN or Inf would shine through a product, so it is selected."""
        return torch.where(self.mask, weight, 0.0)

    def settings(self) -> dict[str, Any]:
        """A mask has none: its shape is the weight's."""
        return {}

    @classmethod
    def blank(cls, weight: Tensor, settings: Mapping[str, Any]) -> Self:
        """A mask that keeps all."""
        if settings:
            raise ConfigError(f"A mask has no settings, but {sorted(settings)} were given.")
        return cls(torch.ones(weight.shape, dtype=torch.bool, device=weight.device))

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """codes or entropy: which weights are not zero, see `pack_codes`. values: these, in order."""
        kept = weight != 0
        return {**pack_codes(kept.flatten(), 2), "values": weight[kept]}

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """Put the values back in their places; the mask becomes those places."""
        if packed.keys() - {"codes", "entropy"} != {"values"}:
            raise FileError(f"A mask is stored as 'codes' and 'values', not as {sorted(packed)}. Restore the file.")
        values = packed["values"]
        kept = unpack_codes(packed, 2, math.prod(shape)).bool().reshape(shape)
        if values.ndim != 1 or int(kept.sum()) != len(values):
            raise FileError(f"A mask keeps {int(kept.sum())} weights, but {tuple(values.shape)} values are stored.")
        self.mask = kept.to(self.mask.device)
        weight = torch.zeros(kept.shape, dtype=values.dtype)
        weight[kept] = values
        return weight
