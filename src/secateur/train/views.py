"""Views of images that a dense network can say something of, though no label fits them: to learn and calibrate on."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.train.augment import AUGMENTS, ShiftFlip


@AUGMENTS.register("views")
@dataclass(frozen=True, kw_only=True)
class Views:
    """Shift, mirror, turn and scale each image; then put a patch of another into some, and lay another over some.

    A network knows its training images by heart, and says nearly one class of each. Of views between them it says what
    it would say of images that it has not seen. Labels don't follow, so training takes `Distill(weight=1)`.

    Source: Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022, section 3.
    Differs: CutMix (Yun et al., ICCV 2019) beside mixup (Zhang et al., ICLR 2018), and parts of a batch without either.

    >>> x = torch.arange(8.0).reshape(2, 1, 2, 2)
    >>> still = Views(shift_px=0, flip=False, patched=0.0, laid_over=0.0)
    >>> torch.equal(still(x, torch.Generator()), x)
    True
    """

    keeps_labels: ClassVar[bool] = False

    shift_px: int = 4
    flip: bool = True
    angle: float = 0.0  # radians, the most that an image is turned either way
    scale: float = 0.0  # fraction, the most that an image grows or shrinks
    patched: float = 0.25  # fraction of the images that get a patch of another
    laid_over: float = 0.25  # fraction of the images that another is laid over

    def __post_init__(self) -> None:
        if not (self.patched >= 0 and self.laid_over >= 0 and self.patched + self.laid_over <= 1):
            raise ConfigError(f"patched={self.patched} and laid_over={self.laid_over} are fractions of one whole.")
        if self.angle < 0 or not 0 <= self.scale < 1:
            raise ConfigError(f"angle={self.angle} must not be negative, scale={self.scale} in [0, 1).")
        ShiftFlip(shift_px=self.shift_px)  # refuses what it refuses

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        x = ShiftFlip(shift_px=self.shift_px, flip=self.flip)(x, generator)
        if self.angle or self.scale:
            x = turned(x, generator, self.angle, self.scale)
        other = x[torch.randperm(len(x), generator=generator).to(x.device)]
        cuts = [round(part * len(x)) for part in (self.patched, self.patched + self.laid_over)]
        (a, b, rest), (patch, layer, _) = x.tensor_split(cuts), other.tensor_split(cuts)
        return torch.cat([patched(a, patch, generator), laid_over(b, layer, generator), rest])

    def to_dict(self) -> dict[str, Any]:
        """Return the fields and the kind, as plain data."""
        return {"kind": "views", **asdict(self)}


def turned(x: Tensor, generator: torch.Generator, angle: float, scale: float) -> Tensor:
    """Each image of (B, C, H, W) turned by up to `angle` radians and scaled by up to `scale`; edges are mirrored."""
    turns, sizes = (torch.rand(2, len(x), generator=generator) * 2 - 1) * torch.tensor([[angle], [scale]])
    rows = torch.stack([turns.cos(), -turns.sin(), 0 * turns, turns.sin(), turns.cos(), 0 * turns], 1).view(-1, 2, 3)
    theta = ((1 + sizes)[:, None, None] * rows).to(x)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def patched(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (B, C, H, W) with a box from another, a quarter to three quarters of it high and wide (CutMix)."""
    masks = []
    for size in a.shape[2:]:
        length = torch.randint(size // 4, 3 * size // 4 + 1, (len(a), 1), generator=generator)
        start = (torch.rand(len(a), 1, generator=generator) * (size - length + 1)).long()
        place = torch.arange(size)
        masks.append((place >= start) & (place < start + length))
    down, right = masks
    return torch.where((down[:, :, None] & right[:, None, :])[:, None].to(a.device), b, a)


def laid_over(a: Tensor, b: Tensor, generator: torch.Generator) -> Tensor:
    """Each image with up to half of another laid over it (mixup)."""
    part = torch.rand(len(a), 1, 1, 1, generator=generator).to(a) / 2
    return (1 - part) * a + part * b
