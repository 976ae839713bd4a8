"""Scopes: how many weights each layer keeps, when so many of all of them go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import inf, prod
from typing import ClassVar

import torch
from torch import Tensor

from secateur.registry import Registry
from secateur.sparsity.patterns import keep_best


@dataclass(frozen=True)
class Candidates:
    """What a scope may know of a layer.

    Attributes:
        shape: of its weight.
        n: units that it has, those that are gone included.
        scores: (n,), -inf for those; None where the scope does not ask.
    """

    shape: tuple[int, ...]
    n: int
    scores: Tensor | None = None

    def known(self) -> Tensor:
        """The scores."""
        assert self.scores is not None
        return self.scores


@dataclass(frozen=True, kw_only=True)
class Scope(ABC):
    """A way to share a sparsity out among layers.

    Attributes:
        name: in `SCOPES`.
        needs_scores: it compares the weights of different layers, so all have to be scored first.
        per_row: within a layer, each output keeps the same part.
    """

    name: ClassVar[str]
    needs_scores: ClassVar[bool] = False
    per_row: ClassVar[bool] = False

    @abstractmethod
    def kept(self, layers: Mapping[str, Candidates], sparsity: float) -> dict[str, int]:
        """Units that each layer keeps."""


SCOPES: Registry[str, type[Scope]] = Registry("scope")


@SCOPES.register("layer")
@dataclass(frozen=True, kw_only=True)
class PerLayer(Scope):
    """Each layer loses the same fraction, rounded to the nearest number of weights."""

    name: ClassVar[str] = "layer"

    def kept(self, layers: Mapping[str, Candidates], sparsity: float) -> dict[str, int]:
        """n - round(sparsity * n)"""
        return {key: layer.n - round(sparsity * layer.n) for key, layer in layers.items()}


@SCOPES.register("output")
@dataclass(frozen=True, kw_only=True)
class PerOutput(PerLayer):
    """Each output of each layer loses the same fraction, up to one weight.

    Source: Sun et al., "A simple and effective pruning approach for large language models", ICLR 2024, section 3.
    """

    name: ClassVar[str] = "output"
    per_row: ClassVar[bool] = True


@SCOPES.register("global")
@dataclass(frozen=True, kw_only=True)
class AllLayers(Scope):
    """One threshold over the weights of all layers; equal scores keep the earlier layer and the lower index.

    The scores of different layers should be on one scale, as those of `taylor` are.
    """

    name: ClassVar[str] = "global"
    needs_scores: ClassVar[bool] = True

    def kept(self, layers: Mapping[str, Candidates], sparsity: float) -> dict[str, int]:
        """How many of each are among the best of all."""
        parts = [self.scale(layer.known()).cpu() for layer in layers.values()]
        n = sum(layer.n for layer in layers.values())
        best = keep_best(torch.cat(parts)[None], torch.tensor([n - round(sparsity * n)]))[0]
        counts = [int(part.sum()) for part in torch.split(best, [len(part) for part in parts])]
        return dict(zip(layers, counts, strict=True))

    def scale(self, scores: Tensor) -> Tensor:
        """The scores of one layer as they are compared with those of others."""
        return scores


@SCOPES.register("lamp")
@dataclass(frozen=True, kw_only=True)
class Lamp(AllLayers):
    """One threshold over s^2 / (sum of s^2 over the weights of the layer that are no smaller), s = score.

    Source: Lee et al., "Layer-adaptive sparsity for the magnitude-based pruning", ICLR 2021, section 3.
    Differs: takes any score in place of the magnitude. As in the paper, equal scores are put in order by index.
    """

    name: ClassVar[str] = "lamp"

    def scale(self, scores: Tensor) -> Tensor:
        """Shares of what would be left; -inf stays."""
        order = scores.argsort(descending=True, stable=True)
        squares = scores[order].clamp_min(0).double().square()
        ranked = torch.where(squares > 0, squares / squares.cumsum(0), 0.0)
        shared = torch.empty_like(ranked).scatter_(0, order, ranked)
        return torch.where(scores > -inf, shared, -inf)


@SCOPES.register("erk")
@dataclass(frozen=True, kw_only=True)
class ERK(Scope):
    """Density in proportion to (sum of the weight's sizes) / (their product); layers that this would fill stay whole.

    So small layers stay dense and large ones pay for them.
    Source: Evci et al., "Rigging the lottery", ICML 2020, section 3 (Erdős–Rényi kernel).
    """

    name: ClassVar[str] = "erk"

    def kept(self, layers: Mapping[str, Candidates], sparsity: float) -> dict[str, int]:
        """The densities as counts that add up to the whole."""
        total = sum(layer.n for layer in layers.values())
        free = total - round(sparsity * total)
        wanted = {key: layer.n * sum(layer.shape) / prod(layer.shape) for key, layer in layers.items()}
        whole: dict[str, int] = {}
        while full := [k for k, w in wanted.items() if w * free >= layers[k].n * sum(wanted.values())]:
            whole |= {key: layers[key].n for key in full}
            free = max(0, free - sum(layers[key].n for key in full))
            wanted = {key: w for key, w in wanted.items() if key not in whole}
        ends = list(accumulate(wanted.values(), initial=0.0))
        cuts = [round(free * end / ends[-1]) if end else 0 for end in ends]
        parts = dict(zip(wanted, (b - a for a, b in pairwise(cuts)), strict=True))
        return {key: (whole | parts)[key] for key in layers}
