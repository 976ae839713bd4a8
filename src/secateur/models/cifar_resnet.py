"""ResNets for 32x32 images, with parameter-free shortcuts.

Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2, shortcut option A.
State-dict names are those of akamaster/pytorch_resnet_cifar10, so that its published weights load strictly.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import ConfigError
from secateur.models.catalog import MODELS

STAGE_WIDTHS = (16, 32, 64)


class ZeroPadShortcut(nn.Module):
    """Option A: every second row and column, then `pad` zero channels before and as many after."""

    def __init__(self, pad: int) -> None:
        super().__init__()
        self.pad = pad

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))

    def extra_repr(self) -> str:
        return f"pad={self.pad}"


class CifarBlock(nn.Module):
    """y = relu(shortcut(x) + bn2(conv2(relu(bn1(conv1(x)))))). The first convolution may halve the resolution."""

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1:
            self.shortcut = ZeroPadShortcut((width - in_width) // 2)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """A 3x3 stem, three stages of (depth - 2) / 6 blocks, global average, linear.

    Args:
        depth: layers with weights on the main path; 6 n + 2 for a whole n >= 1.
        n_classes: width of the output.
        widths: channels of the stages, growing by even numbers: zeros are put on either side in the shortcuts.
    Takes (B, 3, 32, 32) float32, gives (B, n_classes) logits.
    Raises:
        ConfigError: no such depth or widths.
    """

    def __init__(self, depth: int = 20, n_classes: int = 10, widths: tuple[int, int, int] = STAGE_WIDTHS) -> None:
        super().__init__()
        n_blocks, rest = divmod(depth - 2, 6)
        if rest or n_blocks < 1:
            raise ConfigError(f"depth={depth} is not 6 n + 2. Known sizes: 20, 32, 44, 56, 110.")
        w1, w2, w3 = widths
        if not 0 < w1 <= w2 <= w3 or (w2 - w1) % 2 or (w3 - w2) % 2:
            raise ConfigError(f"widths={widths} must grow from at least 1 by even numbers.")
        self.conv1 = nn.Conv2d(3, w1, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(w1)
        self.layer1 = _stage(w1, w1, n_blocks, stride=1)
        self.layer2 = _stage(w1, w2, n_blocks, stride=2)
        self.layer3 = _stage(w2, w3, n_blocks, stride=2)
        self.linear = nn.Linear(w3, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        out: Tensor = self.linear(x.mean((2, 3)))
        return out


def _stage(in_width: int, width: int, n_blocks: int, *, stride: int) -> nn.Sequential:
    first = CifarBlock(in_width, width, stride)
    return nn.Sequential(first, *(CifarBlock(width, width, 1) for _ in range(n_blocks - 1)))


@MODELS.register("cifar_resnet20")
def cifar_resnet20(n_classes: int = 10) -> CifarResNet:
    """Build the 20-layer network with fresh weights: 269,722 parameters for 10 classes.

    >>> sum(p.numel() for p in cifar_resnet20().parameters())
    269722
    """
    return CifarResNet(20, n_classes)


@MODELS.register("cifar_resnet56")
def cifar_resnet56(n_classes: int = 10) -> CifarResNet:
    """Build the 56-layer network with fresh weights: 853,018 parameters for 10 classes.

    >>> sum(p.numel() for p in cifar_resnet56().parameters())
    853018
    """
    return CifarResNet(56, n_classes)
