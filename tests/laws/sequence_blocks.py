"""Blocks on tokens (B, L, C) and on vectors (B, C), as people write them: block(channels, width, option)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .image_blocks import Block, Scaled, activation


def rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)


class Attention(nn.Module):
    """Self-attention by hand: how q, k, v are made, how queries share keys, and how they meet, are drawn."""

    MAKES = ("separate", "fused_unbind", "fused_chunk", "fused_split")
    MEETS = ("scaled", "sqrt", "sdpa", "einsum")
    SHARES = ("expand", "interleave", "enable_gqa")

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.make = self.MAKES[option % 4]
        self.meet = self.MEETS[option // 4 % 4]
        self.share = self.SHARES[option // 16 % 3]
        self.with_rotary = option // 48 % 2 == 1
        grouped = option // 96 % 2 == 1 and self.make in ("separate", "fused_split")
        self.num_heads = 4 if grouped else 2
        self.num_kv_heads = 2
        self.head_dim = 4
        self.scale = self.head_dim**-0.5
        n_q, n_kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if self.make == "separate":
            self.q = nn.Linear(c, n_q)
            self.k = nn.Linear(c, n_kv, bias=False)
            self.v = nn.Linear(c, n_kv)
        else:
            self.qkv = nn.Linear(c, n_q + 2 * n_kv)
        self.proj = nn.Linear(n_q, c)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        if self.make == "fused_unbind":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        if self.make == "separate":
            q, k, v = self.q(x), self.k(x), self.v(x)
        elif self.make == "fused_chunk":
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            n_q, n_kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
            q, k, v = self.qkv(x).split([n_q, n_kv, n_kv], dim=-1)
        q = q.view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
        k = k.view(b, n, -1, self.head_dim).transpose(1, 2)
        v = v.reshape(b, n, self.num_kv_heads, self.head_dim).transpose(1, 2)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.project(x)
        if self.with_rotary:
            angle = torch.arange(n, dtype=x.dtype)[:, None] * 0.3
            q, k = (t * angle.cos() + rotate_half(t) * angle.sin() for t in (q, k))
        use_gqa = self.meet == "sdpa" and self.share == "enable_gqa"
        repeats = self.num_heads // self.num_kv_heads
        if repeats > 1 and not use_gqa:
            k, v = self.repeat(k, repeats), self.repeat(v, repeats)
        out = self.mix(q, k, v, use_gqa).transpose(1, 2).reshape(b, n, -1)
        return x + self.proj(out)

    def repeat(self, t: Tensor, repeats: int) -> Tensor:
        if self.share == "interleave":
            return t.repeat_interleave(repeats, dim=1)
        b, h, n, d = t.shape
        return t[:, :, None].expand(b, h, repeats, n, d).reshape(b, h * repeats, n, d)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, use_gqa: bool) -> Tensor:
        if self.meet == "sdpa":
            return F.scaled_dot_product_attention(q, k, v, enable_gqa=use_gqa)
        if self.meet == "einsum":
            weights = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            return torch.einsum("bhij,bhjd->bhid", weights, v)
        scores = q @ k.transpose(-2, -1)
        scores = scores * self.scale if self.meet == "scaled" else scores / math.sqrt(q.shape[-1])
        return scores.softmax(dim=-1) @ v


class TorchAttention(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(c, math.gcd(c, 2), batch_first=True, bias=option % 2 == 0)
        self.need_weights = option % 3 == 0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x, x, x, need_weights=self.need_weights)[0]


class Mlp(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(c) if option % 2 else nn.Identity()
        self.fc1 = nn.Linear(c, w)
        self.act = activation(option)
        self.fc2 = nn.Linear(w, c)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(self.act(self.fc1(self.norm(x))))


class Gated(nn.Module):
    """GLU: separate, fused and cut in halves, or `F.glu`."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.option = option % 4
        if self.option == 0:
            self.gate, self.up = nn.Linear(c, w, bias=False), nn.Linear(c, w)
        else:
            self.both = nn.Linear(c, 2 * w)
        self.down = nn.Linear(w, c)

    def forward(self, x: Tensor) -> Tensor:
        if self.option == 0:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        if self.option == 1:
            return self.down(F.glu(self.both(x), dim=-1))
        y = self.both(x)
        a, b = y.chunk(2, dim=-1) if self.option == 2 else y.unflatten(-1, (2, -1)).unbind(-2)
        return self.down(F.gelu(a) * b)


class HalvesApart(nn.Module):
    """Two halves of one projection, used by different layers: independent indices, equal counts."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.both = nn.Linear(c, 2 * w)
        self.left, self.right = nn.Linear(w, c), nn.Linear(w, c, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.both(x).chunk(2, dim=-1)
        return self.left(F.relu(a)) + self.right(torch.tanh(b))


class RmsNorm(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Tied(nn.Module):
    """Two layers that share one parameter, the second one perhaps transposed."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.transposed = option % 2 == 1
        self.first = nn.Linear(c, w if self.transposed else c)
        self.second = nn.Linear(c, c)
        if not self.transposed:
            self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        return F.linear(y, self.first.weight.t()) if self.transposed else self.second(y)


class Again(nn.Module):
    """One layer called twice."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.up = nn.Linear(c, w)
        self.loop = nn.Linear(w, w)

    def forward(self, x: Tensor) -> Tensor:
        return self.loop(torch.relu(self.loop(torch.relu(self.up(x)))))


class Conv1d(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        groups = (1, 2, c)[option % 3]
        w = 2 * c if groups == c else w
        self.conv = nn.Conv1d(c, w, 3, padding=1, groups=groups)
        self.norm = nn.BatchNorm1d(w) if option % 2 else nn.InstanceNorm1d(w, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x.transpose(1, 2))).transpose(1, 2)


class Mixer(nn.Module):
    """Mixes positions through a hidden width of its own."""

    def __init__(self, length: int, w: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(length, w), nn.Linear(w, length)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fc2(torch.relu(self.fc1(x.transpose(1, 2)))).transpose(1, 2)


class ClassToken(nn.Module):
    def __init__(self, c: int, length: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, c))
        self.position = nn.Parameter(torch.zeros(1, length + 1, c))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.position


class Join(nn.Module):
    """Concatenates x with a projection of it, then reads both."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.side = nn.Linear(c, w)
        self.out = nn.Linear(c + w, w) if option % 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.side(x), x], dim=-1))


class Literal(nn.Module):
    """Heads counted by a number in the code, and by one in a tuple."""

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.grid = (2, w)
        self.option = option % 2
        self.up = nn.Linear(c, 2 * w)
        self.out = nn.Linear(w, c)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).view(*x.shape[:-1], *((2, -1) if self.option else self.grid))
        return self.out(y.sum(-2))


class Normalize(nn.Module):
    """Cosine features: parameters alone don't neutralise what the norm sums over."""

    zeroing_is_exact = False

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(c, w), nn.Linear(w, c)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.normalize(torch.sigmoid(self.fc1(x)), dim=-1))


class Peak(nn.Module):
    """Subtracts the maximum, a softmax over features, or a plain sum: reductions without parameters."""

    zeroing_is_exact = False

    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.option = option % 4
        self.fc1, self.fc2 = nn.Linear(c, w), nn.Linear(w, c)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(self.fc1(x))
        if self.option == 0:
            y = y - y.amax(-1, keepdim=True)
        elif self.option == 1:
            y = y.softmax(-1)
        elif self.option == 2:
            y = y / y.sum(-1, keepdim=True)
        else:
            y = (y - y.mean(-1, keepdim=True)) / y.std(-1, keepdim=True)
        return self.fc2(y)


class Pair(nn.Module):
    def __init__(self, c: int, w: int, option: int) -> None:
        super().__init__()
        self.side = nn.Linear(c, w)
        self.pair = nn.Bilinear(c, w, w)

    def forward(self, x: Tensor) -> Tensor:
        return self.pair(x, self.side(x))


def _encoder(c: int, w: int, option: int) -> nn.Module:
    return nn.TransformerEncoderLayer(
        c, math.gcd(c, 2), dim_feedforward=w, dropout=0.1, batch_first=True, norm_first=option % 2 == 0
    )


_EVERYWHERE: dict[str, Block] = {
    "linear": lambda c, w, o: nn.Sequential(nn.Linear(c, w, bias=o % 2 == 0), activation(o)),
    "mlp": Mlp,
    "gated": Gated,
    "halves_apart": HalvesApart,
    "tied": Tied,
    "again": Again,
    "join": Join,
    "literal": Literal,
    "scaled": Scaled,
    "layer_norm": lambda c, w, o: nn.LayerNorm(c) if o % 2 else nn.RMSNorm(c),
    "rms_norm": RmsNorm,
    "normalize": Normalize,
    "peak": Peak,
}
TOKEN_BLOCKS: dict[str, Block] = {
    **_EVERYWHERE,
    "attention": Attention,
    "torch_attention": TorchAttention,
    "encoder": _encoder,
    "conv1d": Conv1d,
}
VECTOR_BLOCKS: dict[str, Block] = {
    **_EVERYWHERE,
    "batch_norm": lambda c, w, o: nn.BatchNorm1d(c, affine=o % 2 == 0),
    "pair": Pair,
}
