"""Binary weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from secateur.coding.base import CODINGS
from secateur.quantize.granularity import Granularity
from secateur.quantize.quantizer import Quantizer, straight


@CODINGS.register("binary")
class Binary(Quantizer):
    """weight = scale * sign(weight), with scale = mean |weight|: the best one for these signs. The sign of 0 is +.

    Gradients pass straight through where |weight| <= 1.

    Source: Rastegari et al., "XNOR-Net", ECCV 2016, section 3.1 (the scale, the clipped gradient).
    Differs: the scale is kept, and learned by its own gradient, rather than computed anew from the weights, so that
        pruning inputs leaves the remaining weights what they are. Inputs are not binary.

    >>> from secateur.quantize.granularity import PerChannel
    >>> weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    >>> Binary.fit(weight, PerChannel())(weight).detach()
    tensor([[ 2.0000, -2.0000],
            [ 0.5000,  0.5000]])
    """

    kind = "binary"
    step = 2

    @classmethod
    def fit(cls, weight: Tensor, granularity: Granularity) -> Self:
        """The coding of least squared error on a weight."""
        shape = granularity.scale_shape(tuple(weight.shape))
        return cls(granularity.rows(weight.detach()).abs().mean(1).reshape(shape), granularity)

    @property
    def n_codes(self) -> int:
        """-1 and 1."""
        return 2

    @property
    def lowest(self) -> int:
        """-1."""
        return -1

    def levels(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The signs."""
        signs = torch.where(weight >= 0, 1.0, -1.0).to(weight.dtype)
        return straight(signs, weight.clamp(-1, 1) / values["scale"].detach())
