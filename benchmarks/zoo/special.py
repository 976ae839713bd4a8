"""Networks by hand: recurrence, torch's transformer, parametrizations, raw parameters, shared modules, experts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

PRELOAD: tuple[str, ...] = ()  # imported once, before the processes are forked
Case = Callable[[], tuple[nn.Module, Any]]
_CASES: dict[str, Case] = {}


def names() -> list[str]:
    return list(_CASES)


def build(name: str) -> tuple[nn.Module, Any]:
    model, inputs = _CASES[name]()
    return model.eval(), inputs


def _case(make: Case) -> Case:
    _CASES[make.__name__] = make
    return make


class Recurrent(nn.Module):
    """Projection, recurrence, classifier on the last step."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 20)
        self.cell = getattr(nn, kind)(20, 32, batch_first=True, **options)
        width = options.get("proj_size", 32) * (2 if options.get("bidirectional") else 1)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(torch.relu(self.embed(x)))[0][:, -1])


@_case
def lstm() -> tuple[nn.Module, Any]:
    return Recurrent("LSTM"), torch.randn(2, 7, 12)


@_case
def lstm_two_layers_bidirectional() -> tuple[nn.Module, Any]:
    return Recurrent("LSTM", num_layers=2, bidirectional=True), torch.randn(2, 7, 12)


@_case
def lstm_projected() -> tuple[nn.Module, Any]:
    return Recurrent("LSTM", proj_size=16), torch.randn(2, 7, 12)


@_case
def gru() -> tuple[nn.Module, Any]:
    return Recurrent("GRU", num_layers=2), torch.randn(2, 7, 12)


@_case
def rnn() -> tuple[nn.Module, Any]:
    return Recurrent("RNN"), torch.randn(2, 7, 12)


class CellLoop(nn.Module):
    """An `LSTMCell` called once per step."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 20)
        self.cell = nn.LSTMCell(20, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], self.cell.hidden_size)
        c = torch.zeros_like(h)
        for step in self.embed(x).unbind(1):
            h, c = self.cell(step, (h, c))
        return self.head(h)


@_case
def lstm_cell_loop() -> tuple[nn.Module, Any]:
    return CellLoop(), torch.randn(2, 4, 12)


class SelfAttention(nn.Module):
    """`nn.MultiheadAttention` between two linear layers."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True, **options)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.attention(x, x, x, need_weights=False)[0])


class CrossAttention(nn.Module):
    """Keys and values of other widths than the queries, so that `nn.MultiheadAttention` holds three weights."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 32), nn.Linear(12, 24), nn.Linear(12, 20)
        self.attention = nn.MultiheadAttention(32, 4, kdim=24, vdim=20, batch_first=True)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attention(self.q(x), self.k(x), self.v(x))[0])


@_case
def multihead_attention() -> tuple[nn.Module, Any]:
    return SelfAttention(), torch.randn(2, 7, 12)


@_case
def multihead_attention_with_extra_key() -> tuple[nn.Module, Any]:
    return SelfAttention(add_bias_kv=True), torch.randn(2, 7, 12)


@_case
def multihead_attention_cross() -> tuple[nn.Module, Any]:
    return CrossAttention(), torch.randn(2, 7, 12)


class EncoderClassifier(nn.Module):
    """`nn.TransformerEncoder` with learned positions, averaged."""

    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        self.positions = nn.Parameter(torch.randn(1, 7, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=norm_first, activation="gelu")
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x) + self.positions).mean(1))


@_case
def transformer_encoder() -> tuple[nn.Module, Any]:
    return EncoderClassifier(norm_first=False), torch.randn(2, 7, 12)


@_case
def transformer_encoder_norm_first() -> tuple[nn.Module, Any]:
    return EncoderClassifier(norm_first=True), torch.randn(2, 7, 12)


class Translator(nn.Module):
    """`nn.Transformer` over two embeddings, with a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(30, 32), nn.Embedding(30, 32)
        self.transformer = nn.Transformer(32, 4, 2, 2, 48, batch_first=True)
        self.head = nn.Linear(32, 30)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1])
        return self.head(self.transformer(self.source(source), self.target(target), tgt_mask=mask))


@_case
def transformer() -> tuple[nn.Module, Any]:
    return Translator(), (torch.randint(0, 30, (2, 7)), torch.randint(0, 30, (2, 6)))


def _double(c: int, w: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(c, w, 3, padding=1), nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, w, 3, padding=1), nn.ReLU()
    )


class UNet(nn.Module):
    """Two levels, skips by concatenation."""

    def __init__(self, upsampled: bool) -> None:
        super().__init__()
        self.down = nn.ModuleList([_double(3, 16), _double(16, 32)])
        self.middle = _double(32, 64)
        self.up = nn.ModuleList([_double(64 + 32, 32), _double(32 + 16, 16)])
        narrow = [nn.ConvTranspose2d(64, 64, 2, stride=2), nn.ConvTranspose2d(32, 32, 2, stride=2)]
        self.grow = nn.ModuleList([nn.Upsample(scale_factor=2), nn.Upsample(scale_factor=2)] if upsampled else narrow)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for block, grow in zip(self.up, self.grow, strict=True):
            x = block(torch.cat([grow(x), skips.pop()], dim=1))
        return self.head(x)


@_case
def unet_transposed() -> tuple[nn.Module, Any]:
    return UNet(upsampled=False), torch.randn(2, 3, 16, 16)


@_case
def unet_upsampled() -> tuple[nn.Module, Any]:
    return UNet(upsampled=True), torch.randn(2, 3, 16, 16)


def _normed(norm: Callable[..., nn.Module]) -> tuple[nn.Module, Any]:
    """Every layer but the last behind one way of writing a weight as a function of other tensors."""
    layers = [
        norm(nn.Conv2d(3, 16, 3)), nn.ReLU(), norm(nn.Conv2d(16, 24, 3)), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), norm(nn.Linear(24, 32)), nn.ReLU(), nn.Linear(32, 5),
    ]  # fmt: skip
    return nn.Sequential(*layers), torch.randn(2, 3, 12, 12)


@_case
def weight_norm_parametrization() -> tuple[nn.Module, Any]:
    return _normed(parametrizations.weight_norm)


@_case
def weight_norm_hook() -> tuple[nn.Module, Any]:
    return _normed(_quiet(nn.utils.weight_norm))


@_case
def spectral_norm_parametrization() -> tuple[nn.Module, Any]:
    return _normed(parametrizations.spectral_norm)


@_case
def spectral_norm_hook() -> tuple[nn.Module, Any]:
    return _normed(_quiet(nn.utils.spectral_norm))


def _quiet(norm: Callable[..., nn.Module]) -> Callable[[nn.Module], nn.Module]:
    """The old hooks say that the parametrizations replace them; networks in use still hold them."""
    import warnings

    def apply(layer: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            return norm(layer)

    return apply


class Listed(nn.Module):
    """Weights in `nn.ParameterList`s and an `nn.ParameterDict`, used by functional calls."""

    def __init__(self) -> None:
        super().__init__()
        widths = (12, 24, 32, 16)
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList(torch.randn(o, i) * i**-0.5 for i, o in pairs)
        self.biases = nn.ParameterList(torch.zeros(o) for _, o in pairs)
        self.head = nn.ParameterDict({"weight": torch.randn(5, 16) * 0.25, "bias": torch.zeros(5)})

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in zip(self.weights, self.biases, strict=True):
            x = F.gelu(F.linear(x, weight, bias))
        return F.linear(x, self.head["weight"], self.head["bias"])


@_case
def parameter_lists() -> tuple[nn.Module, Any]:
    return Listed(), torch.randn(2, 12)


class Functional(nn.Module):
    """Convolution, einsum, matmul and norm on parameters that no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(24, 3, 3, 3) * 0.2)
        self.scale, self.shift = nn.Parameter(torch.ones(24)), nn.Parameter(torch.zeros(24))
        self.mix = nn.Parameter(torch.randn(24, 32) * 0.2)
        self.heads = nn.Parameter(torch.randn(4, 32, 10) * 0.2)
        self.out = nn.Parameter(torch.randn(40, 5) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.kernel, padding=1).mean((2, 3))
        x = F.layer_norm(x, x.shape[-1:], self.scale, self.shift)
        x = torch.einsum("bi,hio->bho", F.silu(x @ self.mix), self.heads)
        return x.flatten(1) @ self.out


@_case
def functional_parameters() -> tuple[nn.Module, Any]:
    return Functional(), torch.randn(2, 3, 10, 10)


class Shared(nn.Module):
    """One block called twice, and one linear layer used forward and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 24)
        self.block = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
        self.tied = nn.Linear(24, 32, bias=False)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.block(x)
        x = x + self.block(x)
        return self.head(F.linear(torch.relu(self.tied(x)), self.tied.weight.t()))


@_case
def shared_modules() -> tuple[nn.Module, Any]:
    return Shared(), torch.randn(2, 12)


class Experts(nn.Module):
    """Three experts, weighted by a router: all of them run (dense), or the best two by a loop (sparse)."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.sparse = sparse
        self.stem = nn.Linear(12, 24)
        self.router = nn.Linear(24, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 24)) for _ in range(3))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        weights = self.router(x).softmax(-1)
        if not self.sparse:
            out = torch.stack([expert(x) for expert in self.experts], dim=1)
            return self.head((weights[:, :, None] * out).sum(1))
        best, index = weights.topk(2, dim=-1)
        total = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            total = total + expert(x) * (best * (index == i)).sum(-1, keepdim=True)
        return self.head(total)


@_case
def experts_dense() -> tuple[nn.Module, Any]:
    return Experts(sparse=False), torch.randn(6, 12)


@_case
def experts_sparse() -> tuple[nn.Module, Any]:
    return Experts(sparse=True), torch.randn(6, 12)


class Batched(nn.Module):
    """Experts in one weight of shape (experts, in, out), all computed by `bmm`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(12, 24), nn.Linear(24, 4), nn.Linear(24, 5)
        self.up, self.down = nn.Parameter(torch.randn(4, 24, 64) * 0.2), nn.Parameter(torch.randn(4, 32, 24) * 0.2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate, value = torch.bmm(x.expand(4, *x.shape), self.up).chunk(2, dim=-1)
        out = torch.bmm(F.silu(gate) * value, self.down)
        return self.head((out * self.router(x).softmax(-1).t()[:, :, None]).sum(0))


@_case
def experts_batched() -> tuple[nn.Module, Any]:
    return Batched(), torch.randn(6, 12)
