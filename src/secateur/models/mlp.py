"""A plain multilayer perceptron, for tables."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.models.catalog import MODELS


class MLP(nn.Module):
    """Linear and ReLU layers in turn; the last layer is linear. Inputs of any shape (B, ...) are flattened.

    Args:
        in_features: numbers per sample, after flattening.
        hidden: widths of the hidden layers, first to last; () gives a linear classifier.
        n_classes: width of the output.
    """

    def __init__(self, in_features: int, hidden: Sequence[int] = (128, 128), n_classes: int = 10) -> None:
        super().__init__()
        widths = (in_features, *hidden, n_classes)
        if min(widths) < 1:
            raise ConfigError(f"in_features, hidden, n_classes = {widths}: every width must be at least 1.")
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths[:-1]))
        self.linear = nn.Linear(widths[-2], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer in self.hidden:
            x = layer(x).relu()
        out: Tensor = self.linear(x)
        return out


@MODELS.register("mlp")
def mlp(in_features: int, hidden: Sequence[int] = (128, 128), n_classes: int = 10) -> MLP:
    """Build an `MLP` with fresh weights.

    >>> mlp(4, hidden=(8,), n_classes=3)
    MLP(
      (hidden): ModuleList(
        (0): Linear(in_features=4, out_features=8, bias=True)
      )
      (linear): Linear(in_features=8, out_features=3, bias=True)
    )
    """
    return MLP(in_features, hidden, n_classes)
