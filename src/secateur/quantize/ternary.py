"""Ternary weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Self

import torch
from torch import Tensor

from secateur.coding.base import CODINGS
from secateur.quantize.granularity import Granularity
from secateur.quantize.quantizer import Quantizer, straight
from secateur.tensors import wide


@CODINGS.register("ternary")
class Ternary(Quantizer):
    """weight = scale * sign(weight) where |weight| > threshold * scale, else 0. Gradients pass straight through.

    For values w that share a scale, the limit starts as 0.7 mean |w|, and the scale as the mean of the |w| beyond.

    Source: Li et al., "Ternary Weight Networks", arXiv:1605.04711, 2016, section 2.
    Differs: scale and limit are kept rather than computed anew in each step; the scale learns by its own gradient, and
        the limit follows it.

    >>> from secateur.quantize.granularity import PerTensor
    >>> weight = torch.tensor([1.0, -3.0, 0.25])
    >>> Ternary.fit(weight, PerTensor())(weight).detach()
    tensor([ 2., -2.,  0.])
    """

    kind = "ternary"
    stored: ClassVar[tuple[str, ...]] = ("scale", "threshold")
    threshold: Tensor

    def __init__(self, scale: Tensor, granularity: Granularity, threshold: Tensor | None = None) -> None:
        super().__init__(scale, granularity)
        start = torch.full_like(scale, 0.5) if threshold is None else threshold.to(scale)
        self.register_buffer("threshold", start)

    @classmethod
    def fit(cls, weight: Tensor, granularity: Granularity) -> Self:
        """The coding of nearly the least squared error on a weight."""
        shape = granularity.scale_shape(tuple(weight.shape))
        sizes = wide(granularity.rows(weight.detach())).abs()
        limit = 0.7 * sizes.mean(1, keepdim=True)
        beyond = sizes > limit
        scale = (sizes * beyond).sum(1) / beyond.sum(1).clamp_min(1)
        threshold = torch.where(scale > 0, limit[:, 0] / scale, 0.5)
        return cls(scale.to(weight.dtype).reshape(shape), granularity, threshold.reshape(shape))

    @property
    def n_codes(self) -> int:
        """-1, 0 and 1."""
        return 3

    @property
    def lowest(self) -> int:
        """-1."""
        return -1

    def levels(self, weight: Tensor, values: Mapping[str, Tensor]) -> Tensor:
        """The signs of what is beyond the limit."""
        u = weight / values["scale"].detach()
        return straight(torch.where(u.abs() > values["threshold"], u.sign(), 0.0), u)

    def is_allowed(self, name: str, value: Tensor) -> bool:
        """Thresholds lie in (0, 1), where a coded weight is its own code."""
        return super().is_allowed(name, value) and (name != "threshold" or bool(((value > 0) & (value < 1)).all()))
