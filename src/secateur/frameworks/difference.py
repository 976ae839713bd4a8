"""How far two runs of one model are apart."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def largest_difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """The largest max|a - b| / max|a| over pairs of tensors; infinity where shapes or non-finite places differ.

    >>> largest_difference([torch.tensor([4.0, 2.0])], [torch.tensor([4.0, 1.0])])
    0.25
    """
    return max((_relative(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _relative(expected: Tensor, actual: Tensor) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = (t.detach().cpu().to(wide) for t in (expected, actual))
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return float("inf")
    a, b = (torch.where(finite, t, torch.zeros_like(t)) for t in (a, b))
    scale, gap = a.abs().max().item(), (a - b).abs().max().item()
    return gap / scale if scale else (0.0 if gap == 0 else float("inf"))
