"""Blocks on images (B, C, H, W), as people write them. Each is made as block(channels, width, option)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Block = Callable[[int, int, int], nn.Module]

ACTIVATIONS = (nn.ReLU, nn.Identity, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.GELU)


def activation(option: int) -> nn.Module:
    return ACTIVATIONS[option % len(ACTIVATIONS)]()


def conv_norm(c: int, w: int, option: int, **conv: int) -> nn.Sequential:
    """Convolution, batch norm or none, activation."""
    norm = [nn.BatchNorm2d(w)] if option % 2 == 0 else []
    layer = nn.Conv2d(c, w, kernel_size=3, padding=1, bias=option % 3 != 0, **conv)
    return nn.Sequential(layer, *norm, activation(option))


class Residual(nn.Module):
    """x + f(x); where widths differ, the shortcut is projected."""

    def __init__(self, c: int, w: int, option: int, out: int | None = None) -> None:
        super().__init__()
        out = out or c
        self.conv1 = nn.Conv2d(c, w, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(w)
        self.conv2 = nn.Conv2d(w, out, 3, padding=1, groups=_groups(w, out) if option % 3 == 1 else 1)
        self.bn2 = nn.BatchNorm2d(out)
        self.shortcut = nn.Identity() if out == c else nn.Conv2d(c, out, 1)
        self.inplace = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        y += self.shortcut(x)
        return self.inplace(y)


class Inverted(nn.Module):
    """MobileNet: expand, depthwise, squeeze-excite, project."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(c, w, 1)
        self.depthwise = nn.Conv2d(w, w, 3, padding=1, groups=w, bias=False)
        self.gate = SqueezeExcite(w, 4, option)
        self.project = nn.Conv2d(w, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(self.gate(F.hardswish(self.depthwise(self.expand(x)))))


class SqueezeExcite(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.as_conv = option % 2 == 0
        self.down = nn.Conv2d(c, w, 1) if self.as_conv else nn.Linear(c, w)
        self.up = nn.Conv2d(w, c, 1) if self.as_conv else nn.Linear(w, c)

    def forward(self, x: Tensor) -> Tensor:
        if self.as_conv:
            return x * torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        gate = torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3))))))
        return x * gate[:, :, None, None]


class Dense(nn.Module):
    """DenseNet: every convolution reads all that came before."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(c, w, 3, padding=1)
        self.norm = nn.BatchNorm2d(c + w)
        self.second = nn.Conv2d(c + w, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([x, self.first(x)], 1)
        return torch.cat([y, self.second(F.relu(self.norm(y)))], 1)


class Halves(nn.Module):
    """ShuffleNet: one half passes, the other is convolved, then channels are shuffled."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.conv = conv_norm(c // 2, w, option)
        self.shuffle = nn.ChannelShuffle(2) if option % 2 and (c - c // 2 + w) % 2 == 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return self.shuffle(torch.cat([a, self.conv(b)], 1))


class Shuffle(nn.Module):
    """Grouped convolution, then a channel shuffle by view and transpose, then another one."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.groups = _groups(c, w)
        self.first = nn.Conv2d(c, w, 1, groups=self.groups)
        self.second = nn.Conv2d(w, w, 1, groups=self.groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, c, h, w = x.shape
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.second(x)


class GatedConv(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.option = option % 3
        self.conv = nn.Conv2d(c, 2 * w, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.option == 0:
            return F.glu(y, 1)
        a, b = y.chunk(2, 1) if self.option == 1 else torch.split(y, y.shape[1] // 2, dim=1)
        return a * torch.tanh(b)


class Twice(nn.Module):
    """One convolution called twice."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


class TwoHeads(nn.Module):
    """One convolution applied to two branches that are joined later."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(c, w, 1), nn.Conv2d(c, w, 3, padding=1)
        self.shared = nn.Conv2d(w, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shared(self.left(x)), self.shared(self.right(x)), self.left(x)], 1)


class PixelShuffle(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, 4 * w, 1)
        self.up = nn.PixelShuffle(2)
        self.down = nn.PixelUnshuffle(2) if option % 2 else nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(self.conv(x))))


class Scaled(nn.Module):
    """A buffer, a plain tensor attribute, or a bare parameter scales channels."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        scale = torch.linspace(0.5, 1.5, c)
        if option % 3 == 0:
            self.register_buffer("scale", scale)
        elif option % 3 == 1:
            self.scale = scale.to(torch.get_default_dtype())
        else:
            self.scale = nn.Parameter(scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(1, -1, 1, 1) if x.dim() == 4 else x * self.scale


class ZeroShortcut(nn.Module):
    """CIFAR ResNet, option A: the shortcut is strided and padded with zero channels."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, c + 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(c + 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))


class LiteralGroups(nn.Module):
    """A hard-coded count: still runs after pruning, and then computes something else."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c, 2 * w, 1)
        self.out = nn.Conv2d(w, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        b, _, h, w = y.shape
        return self.out(y.view(b, 2, -1, h, w)[:, 0] - y.view(b, 2, -1, h, w)[:, 1])


class Slices(nn.Module):
    """Partial convolution: a fixed number of channels is convolved, the rest passes (FasterNet)."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.n = c // 2
        self.conv = nn.Conv2d(self.n, self.n, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x[:, : self.n]), x[:, self.n :]], 1)


class Upsample(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.pool = (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.ReflectionPad2d(1))[option % 3]
        self.mode = ("nearest", "bilinear")[option % 2]
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.interpolate(self.conv(self.pool(x)), size=x.shape[-2:], mode=self.mode)


def _groups(c: int, w: int) -> int:
    return math.gcd(4, c, w)


IMAGE_BLOCKS: dict[str, Block] = {
    "conv": conv_norm,
    "strided": lambda c, w, o: conv_norm(c, w, o, stride=2),
    "grouped": lambda c, w, o: conv_norm(c, w, o, groups=_groups(c, w)),
    "depthwise": lambda c, w, o: conv_norm(c, c * (1 + o % 2), o, groups=c),
    "transposed": lambda c, w, o: nn.ConvTranspose2d(c, w, 2, stride=2, groups=_groups(c, w) if o % 2 else 1),
    "residual": Residual,
    "projected": lambda c, w, o: Residual(c, w, o, out=w + 2),
    "inverted": Inverted,
    "squeeze_excite": SqueezeExcite,
    "dense": Dense,
    "halves": Halves,
    "shuffle": Shuffle,
    "gated_conv": GatedConv,
    "group_norm": lambda c, w, o: nn.GroupNorm((math.gcd(2, c), 1, c)[o % 3], c, affine=o % 2 == 0),
    "instance_norm": lambda c, w, o: nn.InstanceNorm2d(c, affine=o % 2 == 0),
    "twice": Twice,
    "two_heads": TwoHeads,
    "pixel_shuffle": PixelShuffle,
    "scaled": Scaled,
    "zero_shortcut": ZeroShortcut,
    "literal_groups": LiteralGroups,
    "slices": Slices,
    "upsample": Upsample,
    "prelu": lambda c, w, o: nn.PReLU(c),
    "pool": lambda c, w, o: (nn.MaxPool2d, nn.AvgPool2d)[o % 2](2, 1, 1),
}
