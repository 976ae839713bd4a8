"""Augmentation, vectorised over the batch: a frozen dataclass that maps (x, generator) to a new x."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.data.words import PAD, UNKNOWN
from secateur.errors import ConfigError, DataError
from secateur.registry import Registry


class Augment(Protocol):
    """What `TrainConfig.augment` takes.

    One whose images are no longer what their labels say has an attribute `keeps_labels` that is False.
    """

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return a changed copy of x (B, C, ...), same shape; randomness from the generator (on the CPU) alone."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return {"kind": the key in AUGMENTS, and the fields}."""
        ...


def check_labels_stay(augment: Augment | None) -> None:
    """Raise ConfigError where what labels say is not what its images show."""
    if not getattr(augment, "keeps_labels", True):
        raise ConfigError(
            f"No label fits the images that {type(augment).__name__} makes. Learn from the dense model alone:"
            " Finetune(distill=Distill(weight=1))."
        )


AUGMENTS: Registry[str, type] = Registry("augmentation")


@AUGMENTS.register("shift_flip")
@dataclass(frozen=True, kw_only=True)
class ShiftFlip:
    """Shift each image by up to `shift_px` pixels each way, filling with 0 (the mean), and mirror half of them.

    >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
    >>> torch.equal(ShiftFlip(shift_px=0)(x, torch.Generator()), x)
    True
    """

    shift_px: int = 1
    flip: bool = False  # left to right, each image with probability 1/2

    def __post_init__(self) -> None:
        if self.shift_px < 0:
            raise ConfigError(f"shift_px={self.shift_px} is negative. It is a distance in pixels.")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if x.ndim != 4:
            raise DataError(f"ShiftFlip needs images (B, C, H, W), but x is {tuple(x.shape)}. Set augment=None.")
        n, channels, height, width = x.shape
        span = 2 * self.shift_px + 1
        down, right = torch.randint(span, (2, n, 1), generator=generator)
        is_flipped = torch.rand((n, 1), generator=generator) < (0.5 if self.flip else 0.0)
        columns = torch.arange(width).expand(n, width)
        columns = torch.where(is_flipped, width - 1 - columns, columns) + right  # (B, W)
        rows = torch.arange(height) + down  # (B, H)
        padded = F.pad(x, [self.shift_px] * 4)
        sample, channel = torch.arange(n).view(n, 1, 1, 1), torch.arange(channels).view(1, channels, 1, 1)
        at = (sample, channel, rows.view(n, 1, height, 1), columns.view(n, 1, 1, width))
        return padded[tuple(index.to(x.device) for index in at)]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the kind, as plain data."""
        return {"kind": "shift_flip", **asdict(self)}


@AUGMENTS.register("word_dropout")
@dataclass(frozen=True, kw_only=True)
class WordDropout:
    """Read each word of a text as unknown with probability `p`; padding stays.

    It teaches what unknown words mean, which no text of the training part shows where all its words are known, and not
    to lean on single words.

    Source: Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", ACL 2015,
    section 3. Differs: a dropped word becomes `UNKNOWN` in place of going.

    >>> WordDropout(p=0.0)(torch.tensor([[2, 3, 0]]), torch.Generator())
    tensor([[2, 3, 0]])
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.p < 1:
            raise ConfigError(f"p={self.p} is outside [0, 1). It is the fraction of words that are read as unknown.")

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if x.is_floating_point():
            raise DataError(f"WordDropout needs token numbers (B, T), but x is {x.dtype}. Set augment=None.")
        is_dropped = (torch.rand(x.shape, generator=generator) < self.p).to(x.device)
        return x.masked_fill(is_dropped & (x != PAD), UNKNOWN)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the kind, as plain data."""
        return {"kind": "word_dropout", **asdict(self)}
