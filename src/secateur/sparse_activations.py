"""Activations that are zero more often: what they are replaced by, where they are, and how sparse they turn out."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.registry import Registry
from secateur.tensors import Inputs, modules_of
from secateur.watching import watch

_NAMES = re.compile(r"elu|silu|swish|mish", re.IGNORECASE)
"""In the class name of what is near zero for inputs below zero, in whatever library: ReLU, GELU, SiLUActivation, …"""
_N_VALUES = 2**18
"""Values of one activation in one batch that a quantile is taken of."""


class Sparse(nn.Module):
    """An activation with more zeros; `inner` is the one that it was made of."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


class Thresholded(Sparse):
    """y = f(x) where |f(x)| > threshold, else 0.

    >>> Thresholded(nn.Identity(), 1.0)(torch.tensor([-2.0, 0.5, 1.0, 3.0]))
    tensor([-2.,  0.,  0.,  3.])
    """

    def __init__(self, inner: nn.Module, threshold: float) -> None:
        super().__init__(inner)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        """Gradients flow through what is left."""
        y: Tensor = self.inner(x)
        return torch.where(y.abs() > self.threshold, y, 0)

    def extra_repr(self) -> str:
        """The threshold."""
        return f"threshold={self.threshold:.4g}"


class Winners(Sparse):
    """y = f(x) where |f(x)| is among the k largest along an axis, else 0. Equal ones may let more than k through.

    k is a fraction of the width, at least 1. What a unit says depends on the others, so pruning leaves the width whole.

    >>> Winners(nn.Identity(), kept=0.5, axis=-1)(torch.tensor([-2.0, 0.5, 1.0, 3.0]))
    tensor([-2.,  0.,  0.,  3.])
    """

    def __init__(self, inner: nn.Module, kept: float, axis: int) -> None:
        super().__init__(inner)
        self.kept = kept
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """Gradients flow through what is left."""
        y: Tensor = self.inner(x)
        size, width = y.abs(), y.shape[self.axis]
        k = max(1, round(self.kept * width))
        least = size.kthvalue(width - k + 1, self.axis, keepdim=True).values
        return torch.where(size >= least, y, 0)

    def extra_repr(self) -> str:
        """The fraction and the axis."""
        return f"kept={self.kept:.4g}, axis={self.axis}"


@dataclass(frozen=True, kw_only=True)
class Activation(ABC):
    """What activations are replaced by. Its fields are its settings, and what was measured for one of them."""

    name: ClassVar[str]
    needs_data: ClassVar[bool] = False

    @abstractmethod
    def module(self, old: nn.Module) -> nn.Module:
        """The new module, made of the old one."""

    def fitted(self, outputs: Tensor) -> Activation:
        """The same with what is measured on outputs (n,) of the old module."""
        return self


ACTIVATIONS: Registry[str, type[Activation]] = Registry("sparse activation")


@ACTIVATIONS.register("relu")
@dataclass(frozen=True, kw_only=True)
class Relu(Activation):
    """ReLU in place of what looks like it. The model should be fine-tuned afterwards.

    Source: Mirzadeh et al., "ReLU strikes back", ICLR 2024, section 4 (its first stage).
    """

    name: ClassVar[str] = "relu"

    def module(self, old: nn.Module) -> nn.Module:
        """ReLU"""
        return nn.ReLU()


@ACTIVATIONS.register("threshold")
@dataclass(frozen=True, kw_only=True)
class Threshold(Activation):
    """What is small becomes zero: a fraction `sparsity` of the outputs, as measured on calibration data.

    Source: Lee et al., "CATS: contextually-aware thresholding for sparsity in large language models", 2024, section 3.
    Differs: any activation, not only that of a gated MLP.
    """

    name: ClassVar[str] = "threshold"
    needs_data: ClassVar[bool] = True
    sparsity: float = 0.5  # of the outputs
    value: float | None = None  # the threshold, where it is known already

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def module(self, old: nn.Module) -> nn.Module:
        """The old one, cut off at the threshold."""
        if self.value is None:
            raise ConfigError("The threshold is not measured yet. Give data, or the value.")
        return Thresholded(old, self.value)

    def fitted(self, outputs: Tensor) -> Activation:
        """The threshold is a quantile of the magnitudes."""
        if self.value is not None:
            return self
        magnitudes = outputs.abs().float().sort().values
        return replace(self, value=float(magnitudes[max(0, round(self.sparsity * len(magnitudes)) - 1)]))


@ACTIVATIONS.register("k_winners")
@dataclass(frozen=True, kw_only=True)
class KWinners(Activation):
    """Only the largest outputs along an axis stay: the features of a token, or the channels of a pixel.

    Source: Ahmad and Scheinkman, "How can we be so dense?", 2019, section 3.
    Differs: by magnitude, within one position, and without boosting of units that win rarely.
    """

    name: ClassVar[str] = "k_winners"
    sparsity: float = 0.5  # of the width
    axis: int = -1  # of the width: -1 for features, 1 for channels of images

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def module(self, old: nn.Module) -> nn.Module:
        """The old one, of which the largest stay."""
        return Winners(old, 1 - self.sparsity, self.axis)


def find_activations(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that are near zero below zero (ReLU, GELU, SiLU, Mish, … of any library), by first fqn.

    >>> list(find_activations(nn.Sequential(nn.Linear(1, 1), nn.GELU(), nn.Sigmoid())))
    ['1']
    """
    found: dict[int, tuple[str, nn.Module]] = {}
    inside = {id(m.inner) for m in model.modules() if isinstance(m, Sparse)}
    for fqn, module in modules_of(model):
        is_plain = not module._modules and _NAMES.search(type(module).__name__) is not None
        if fqn and id(module) not in inside and (is_plain or isinstance(module, Sparse)):
            found.setdefault(id(module), (fqn, module))
    return dict(found.values())


def activation_sparsity(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, float]:
    """By fqn of each activation module: the fraction of its outputs that are zero, over all batches of inputs.

    Modules that are not called are left out, and so is what the model does by function (`F.relu`).

    >>> activation_sparsity(nn.Sequential(nn.PReLU(), nn.ReLU()), [torch.tensor([-1.0, 0.0, 1.0, 2.0])])
    {'0': 0.25, '1': 0.5}
    """
    counts: dict[str, tuple[int, int]] = {}

    def count(fqn: str, x: Tensor, y: Tensor) -> None:
        zeros, n = counts.get(fqn, (0, 0))
        counts[fqn] = zeros + int((y == 0).sum()), n + y.numel()

    watch(model, find_activations(model), batches, count)
    return {fqn: zeros / max(1, n) for fqn, (zeros, n) in counts.items()}


def activation_samples(model: nn.Module, batches: Iterable[Inputs]) -> dict[str, Tensor]:
    """By fqn of each activation module: (n,) of its outputs, evenly spread over each batch."""
    parts: dict[str, list[Tensor]] = {}

    def sample(fqn: str, x: Tensor, y: Tensor) -> None:
        flat = y.detach().flatten()
        parts.setdefault(fqn, []).append(flat[:: -(-len(flat) // _N_VALUES) or 1].clone())

    watch(model, find_activations(model), batches, sample)
    return {fqn: torch.cat(found) for fqn, found in parts.items()}


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise ConfigError(f"sparsity={sparsity} is outside [0, 1). It is the fraction of outputs that become zero.")
