"""Patterns: which weights may go together, and the choice of those that stay.

A pattern sees a weight as a matrix (rows, columns), one row for each output, and makes *units* of it: what stays or
goes as one. Scores of units that are gone already are -inf; those never come back.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from secateur.calls import make
from secateur.errors import ConfigError
from secateur.registry import Registry


def keep_best(scores: Tensor, kept: Tensor) -> Tensor:
    """The kept[r] best of each row, fewer where others are -inf; equal scores keep the lower index.

    Args:
        scores: (r, n). kept: (r,) int64.
    Returns:
        (r, n) bool.

    >>> keep_best(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), torch.tensor([1]))
    tensor([[False,  True, False, False]])
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    best = torch.empty_like(scores, dtype=torch.bool).scatter_(1, order, ranks < kept.to(scores.device)[:, None])
    return best & (scores > -inf)


def shares(total: int, amounts: Tensor) -> Tensor:
    """Whole numbers that add up to `total`, as near to proportional as a running sum gets; none above its amount.

    Args:
        total: at most the sum of the amounts.
        amounts: (n,) whole numbers.

    >>> shares(3, torch.tensor([2, 2, 2]))
    tensor([1, 1, 1])
    """
    ends = amounts.long().cumsum(0)
    if not len(ends) or not ends[-1]:
        return torch.zeros_like(ends)
    return (total * ends // ends[-1]).diff(prepend=ends.new_zeros(1))


@dataclass(frozen=True, kw_only=True)
class Pattern(ABC):
    """What may go together. Its fields are its sizes."""

    name: ClassVar[str]

    @property
    def columns(self) -> int:
        """Columns that are chosen from at once, where a sweep goes through a matrix column by column."""
        return 128

    @property
    def sparsity(self) -> float | None:
        """The sparsity that the pattern brings; None where it may have any."""
        return None

    def misfit(self, n_inputs: int) -> str:
        """Why a layer of so many inputs can't have the pattern; empty where it can."""
        return ""

    @abstractmethod
    def units(self, scores: Tensor) -> Tensor:
        """(rows, columns) scores of weights to scores of units."""

    @abstractmethod
    def weights(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Units that stay, (…) bool, to the weights that stay, of that shape."""

    def choose(self, units: Tensor, kept: int, *, per_row: bool) -> Tensor:
        """The units that stay: the best `kept`, of all or of every row by its part of those that are there."""
        there = units > -inf
        if per_row:
            return keep_best(units, shares(min(kept, int(there.sum())), there.sum(1)))
        return keep_best(units.reshape(1, -1), torch.tensor([kept])).reshape(units.shape)


PATTERNS: Registry[str, type[Pattern]] = Registry("pattern")


@PATTERNS.register("unstructured")
@dataclass(frozen=True, kw_only=True)
class Unstructured(Pattern):
    """Any weights."""

    name: ClassVar[str] = "unstructured"

    def units(self, scores: Tensor) -> Tensor:
        """Each weight is a unit."""
        return scores

    def weights(self, units: Tensor, shape: torch.Size) -> Tensor:
        """Each unit is a weight."""
        return units


@PATTERNS.register("nm")
@dataclass(frozen=True, kw_only=True)
class NM(Unstructured):
    """At most n of each m weights that lie side by side along the inputs.

    The m inputs are features of a linear layer, or channels at one position of a convolution's window.
    Source: Zhou et al., "Learning N:M fine-grained structured sparse neural networks from scratch", ICLR 2021.

    >>> NM(n=2, m=4).sparsity
    0.5
    """

    name: ClassVar[str] = "nm"
    n: int = 2
    m: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise ConfigError(f"{self.n}:{self.m} is no pattern. Of each m weights n stay, 1 <= n < m: 2:4 halves.")

    @property
    def columns(self) -> int:
        """A group of m."""
        return self.m

    @property
    def sparsity(self) -> float:
        """1 - n / m"""
        return 1 - self.n / self.m

    def misfit(self, n_inputs: int) -> str:
        """Inputs come in groups of m."""
        return f"its {n_inputs} inputs are no multiple of {self.m}" if n_inputs % self.m else ""

    def choose(self, units: Tensor, kept: int, *, per_row: bool) -> Tensor:
        """The n best of each group, whatever the count."""
        groups = units.reshape(-1, self.m)
        return keep_best(groups, torch.full((len(groups),), self.n)).reshape(units.shape)


@PATTERNS.register("block")
@dataclass(frozen=True, kw_only=True)
class Block(Pattern):
    """Blocks of rows × cols weights; those at the far edges may be smaller. The score of a block is the sum of its own.

    Source: Narang et al., "Block-sparse recurrent neural networks", 2017; the sum of scores in place of the maximum.

    >>> Block(rows=1, cols=2).units(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[3., 3.]])
    """

    name: ClassVar[str] = "block"
    rows: int = 4
    cols: int = 4

    def __post_init__(self) -> None:
        if min(self.rows, self.cols) < 1:
            raise ConfigError(f"A block of {self.rows} × {self.cols} weights is none. Both sides are at least 1.")

    @property
    def columns(self) -> int:
        """About 128, in whole blocks."""
        return self.cols * max(1, 128 // self.cols)

    def units(self, scores: Tensor) -> Tensor:
        """Sums over blocks; -inf where all of a block is gone."""
        rows, columns = scores.shape
        padded = functional.pad(scores, (0, -columns % self.cols, 0, -rows % self.rows), value=-inf)
        blocks = padded.view(-(-rows // self.rows), self.rows, -1, self.cols)
        there = blocks > -inf
        return torch.where(there, blocks, 0).sum((1, 3)).masked_fill(~there.any(1).any(-1), -inf)

    def weights(self, units: Tensor, shape: torch.Size) -> Tensor:
        """All weights of a block."""
        whole = units.repeat_interleave(self.rows, 0).repeat_interleave(self.cols, 1)
        return whole[: shape[0], : shape[1]]


def make_pattern(text: str) -> Pattern:
    """Return the pattern that a text means: a registered name, with settings or without, or `n:m`.

    >>> make_pattern("2:4"), make_pattern("block?rows=8&cols=1")
    (NM(n=2, m=4), Block(rows=8, cols=1))
    """
    pair = re.fullmatch(r"(\d+):(\d+)", text)
    return NM(n=int(pair[1]), m=int(pair[2])) if pair else make(PATTERNS, text)
