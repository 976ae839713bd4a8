"""Layers that multiply what they read by a weight and sum, as modules: what calibration by hooks looks at.

y[n, g, o] = bias[g, o] + sum_k weight[g, o, k] * rows(x)[n, g, k]

`secateur.compensation.readers` finds the same in a record of operators, on any code. Modules need no record, so they
serve where a forward is too large or too unruly for one, and where weights are coded already.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from secateur.compensation.readers import EVERY, Window
from secateur.tensors import modules_of, wide
from secateur.watching import watching

Rows = Callable[[Tensor], Tensor]
"""A sum over rows (n, g, k), such as their Gram matrix."""


@dataclass(frozen=True)
class Layer:
    """A linear layer or a convolution, its weight seen as matrices.

    Columns of a convolution go channel by channel within a position of the window, as matrix kernels lay them out.

    Attributes:
        key: of the weight: `layer1.conv.weight`.
        module: the layer.
        is_transposed: its weight is (in, out).
    """

    key: str
    module: nn.Module
    is_transposed: bool = False

    @property
    def weight(self) -> Tensor:
        """The weight that the layer computes with, without gradient."""
        found: Tensor = self.module.weight  # type: ignore[assignment]
        return found.detach()

    @property
    def free(self) -> Tensor:
        """The weight that training moves: the one below the codings, where there are any."""
        if parametrize.is_parametrized(self.module, "weight"):
            return self.module.parametrizations.weight.original  # type: ignore[union-attr, return-value]
        return self.module.weight  # type: ignore[return-value]

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as (groups, out, in), with the window in what is read."""
        if not isinstance(self.module, _ConvNd):
            return (weight.T if self.is_transposed else weight).unsqueeze(0)
        groups = self.module.groups
        return weight.movedim(1, -1).reshape(groups, len(weight) // groups, -1)

    def tensor(self, matrix: Tensor) -> Tensor:
        """Undo `matrix`."""
        if not isinstance(self.module, _ConvNd):
            return matrix[0].T if self.is_transposed else matrix[0]
        out, channels, *kernel = self.weight.shape
        return matrix.reshape(out, *kernel, channels).movedim(-1, 1).contiguous()

    @property
    def n_inputs(self) -> int:
        """Features, or channels of a group: columns that lie side by side at one position."""
        return int(self.weight.shape[0 if self.is_transposed else 1])

    def rows(self, x: Tensor) -> Tensor:
        """What each output position sees of an input: (n, groups, in)."""
        if not isinstance(self.module, _ConvNd):
            return x.reshape(-1, 1, x.shape[-1])
        conv = self.module
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        space = len(conv.kernel_size)
        batch = x if x.ndim == space + 2 else x.unsqueeze(0)
        padded = functional.pad(batch, conv._reversed_padding_repeated_twice, mode=mode)
        window = Window(conv.kernel_size, conv.stride, (0,) * space, conv.dilation, conv.groups)
        seen = window.unfold(padded, EVERY)
        return seen.reshape(*seen.shape[:2], self.n_inputs, -1).mT.flatten(-2)


def layers_of(
    model: nn.Module, weights: Iterable[str], ignore: Iterable[str] = ()
) -> tuple[dict[str, Layer], tuple[tuple[str, str], ...]]:
    """The layers of these weights by key, and the weights that belong to none, as (key, reason).

    Args:
        weights: keys, as `secateur.coding.codable` gives them.
        ignore: fnmatch patterns on the fqn of modules: `head.*`.

    >>> layers_of(nn.Sequential(nn.Linear(2, 2), nn.Embedding(3, 2)), ["0.weight", "1.weight"])[1]
    (('1.weight', 'Embedding is no linear layer or convolution'),)
    """
    modules, patterns = dict(modules_of(model)), tuple(ignore)
    found: dict[str, Layer] = {}
    skipped: list[tuple[str, str]] = []
    for key in weights:
        fqn, _, name = key.rpartition(".")
        module = modules[fqn]
        if any(fnmatch(fqn, pattern) for pattern in patterns):
            skipped.append((key, "ignored"))
        elif name == "weight" and isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, _ConvTransposeNd):
            found[key] = Layer(key, module)
        elif name == "weight" and is_transposed(module):
            found[key] = Layer(key, module, is_transposed=True)
        else:
            kind = type(module).__name__.removeprefix("Parametrized")
            skipped.append((key, f"{kind} is no linear layer or convolution"))
    return found, tuple(skipped)


def sum_over_inputs(layers: Mapping[str, Layer], run: Callable[[], None], of: Rows) -> dict[str, Tensor]:
    """By key: the sum of `of(rows)` over all that each layer reads in a run. A layer that is not called is left out.

    >>> import torch
    >>> net = nn.Linear(2, 1)
    >>> found = sum_over_inputs({"weight": Layer("weight", net)}, lambda: net(torch.ones(3, 2)), squares)
    >>> found["weight"]
    tensor([[3., 3.]])
    """
    sums: dict[str, Tensor] = {}

    def see(key: str, x: Tensor, y: Tensor) -> None:
        part = of(layers[key].rows(wide(x.detach())))
        sums[key] = sums[key].add_(part) if key in sums else part

    with watching({key: layer.module for key, layer in layers.items()}, see):
        run()
    return sums


def squares(rows: Tensor) -> Tensor:
    """sum_n x[n, g, k]^2: (g, k)."""
    return rows.square().sum(0)


def gram(rows: Tensor) -> Tensor:
    """sum_n x[n, g, k] * x[n, g, l]: (g, k, k)."""
    by_group = rows.movedim(0, 1)
    return by_group.mT @ by_group


def is_transposed(module: nn.Module) -> bool:
    """True for GPT-2's linear layer, whose weight is (in, out)."""
    transformers = sys.modules.get("transformers.pytorch_utils")
    return transformers is not None and isinstance(module, transformers.Conv1D)
