"""The contract of a coding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from secateur.registry import Registry


class Coding(nn.Module):
    """How one weight is written: a parametrization whose `forward` gives the weight that the model computes with.

    The free weight below it is what training moves, so a coding is kept by fine-tuning, and because it is made of
    ordinary operators and buffers, pruning afterwards slices it like any other tensor. Codings stack: a mask below a
    quantizer is a sparse, quantized weight.

    Laws, for every weight w of the right shape:
        forward(forward(w)) = forward(w)
        blank(w, settings()).unpack(pack(forward(w)), w.shape) = forward(w), to the last bit
    """

    kind: ClassVar[str]
    """Its name in `CODINGS` and in files."""

    def forward(self, weight: Tensor) -> Tensor:
        """The coded weight, of the same shape and dtype. Gradients reach what training may move."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """What `blank` needs, as JSON."""
        raise NotImplementedError

    @classmethod
    def blank(cls, weight: Tensor, settings: Mapping[str, Any]) -> Self:
        """A coding for a weight of that shape, dtype and device; its values are filled in by `unpack`.

        Raises:
            ConfigError: the settings are unknown, out of range, or do not fit the shape.
        """
        raise NotImplementedError

    def pack(self, weight: Tensor) -> dict[str, Tensor]:
        """The coded weight as few bytes: contiguous tensors by short names, as the file holds them."""
        raise NotImplementedError

    def unpack(self, packed: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
        """The coded weight again, to the last bit; takes on the values (scale, codebook) that came along.

        Args:
            shape: of the weight, as it is now: pruning may have come between `blank` and this.
        Raises:
            FileError: the tensors are not what `pack` makes for this shape. They may come from a hostile file.
        """
        raise NotImplementedError


CODINGS = Registry[str, type[Coding]]("coding")
