"""A small residual CNN for scikit-learn's 8x8 digits: large enough to prune, small enough to train in seconds."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.models.catalog import MODELS


class DigitsBlock(nn.Module):
    """y = relu(x + bn2(conv2(relu(bn1(conv1(x)))))), all at one width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + x)


class DigitsCNN(nn.Module):
    """Stem, residual block, pool, widening convolution, residual block, global average, linear.

    Args:
        width: channels of the first stage; the second has twice as many.
        n_classes: width of the output.
    Takes (B, 1, 8, 8) float32, gives (B, n_classes) logits. Any even height and width work.
    """

    def __init__(self, width: int = 32, n_classes: int = 10) -> None:
        super().__init__()
        if width < 1 or n_classes < 1:
            raise ConfigError(f"width={width} and n_classes={n_classes} must both be at least 1.")
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(width)
        self.block1 = DigitsBlock(width)
        self.widen = nn.Conv2d(width, 2 * width, 3, padding=1, bias=False)
        self.widen_bn = nn.BatchNorm2d(2 * width)
        self.block2 = DigitsBlock(2 * width)
        self.linear = nn.Linear(2 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_bn(self.stem(x)))
        x = F.max_pool2d(self.block1(x), 2)
        x = F.relu(self.widen_bn(self.widen(x)))
        x = self.block2(x).mean((2, 3))
        out: Tensor = self.linear(x)
        return out


@MODELS.register("digits_cnn")
def digits_cnn(width: int = 32, n_classes: int = 10) -> DigitsCNN:
    """Build a `DigitsCNN` with fresh weights.

    >>> import torch
    >>> digits_cnn(width=8).eval()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    return DigitsCNN(width, n_classes)
