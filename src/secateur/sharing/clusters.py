"""Clusters: few values that stand for many numbers, few lines that stand for many vectors."""

from __future__ import annotations

import torch
from torch import Tensor

_N_BINS = 1024
MAX_VALUES = 256
_MAX_ROUNDS = 100
_LINE_ROUNDS = 25
_MAX_VECTORS = 1 << 17  # that lines are fitted to; all are assigned
_CHUNK = 1 << 22  # numbers that are worked on at a time


def nearest_values(x: Tensor, values: Tensor) -> Tensor:
    """The index of the value nearest to each number: (n,) int64, for ascending values.

    >>> nearest_values(torch.tensor([0.0, 0.9, 9.0]), torch.tensor([0.0, 1.0]))
    tensor([0, 1, 1])
    """
    return torch.bucketize(x, (values[1:] + values[:-1]) / 2)


def fit_values(x: Tensor, n_values: int, weights: Tensor | None = None) -> Tensor:
    """Values v, ascending, with the least sum over i of weights[i] * min over j of (x[i] - v[j])^2: k-means on a line.

    Clusters are stretches of the sorted numbers. Up to 1,024 distinct numbers are cut into stretches in the best way;
    more of them first in bins, whose means then move with their real borders (Lloyd's rounds), which only improves.

    Args:
        x: (n,) numbers; where they are `n_values` distinct ones or fewer, these are the values.
        n_values: at most 256.
        weights: (n,), how much each counts; None counts all alike.
    Returns:
        (at most n_values,) float64.
    Source: Wang and Song, "Ckmeans.1d.dp: Optimal k-means Clustering in One Dimension by Dynamic Programming", The R
        Journal 2011; Lloyd, "Least squares quantization in PCM", 1982.

    >>> fit_values(torch.tensor([1.0, 1.2, 5.0, 5.4]), 2)
    tensor([1.1000, 5.2000], dtype=torch.float64)
    """
    numbers: Tensor
    numbers, places = torch.unique(x.double().cpu(), return_inverse=True)
    if len(numbers) <= n_values:
        return numbers.to(x.device)
    mass = torch.ones_like(x, dtype=torch.float64) if weights is None else weights.double()
    mass = torch.zeros_like(numbers).index_add_(0, places, mass.cpu())
    sums = torch.stack([mass, mass * numbers, mass * numbers.square()]).cumsum(1)
    sums = torch.cat([sums.new_zeros(3, 1), sums], 1)
    edges = _bins(numbers)
    ends = edges[_cut(sums[:, edges], n_values)]
    for _ in range(_MAX_ROUNDS):
        counts, totals, _squares = sums[:, ends].diff(dim=1)
        values: Tensor = totals / counts
        moved = torch.searchsorted(numbers, (values[1:] + values[:-1]) / 2, right=True)
        before, ends = ends, torch.cat([ends[:1], moved, ends[-1:]])
        if torch.equal(before, ends) or bool((ends.diff() == 0).any()):
            break
    return values.to(x.device)


def _bins(numbers: Tensor) -> Tensor:
    """Edges of bins of sorted distinct numbers, as places from 0 to n: half by count, half by width."""
    n = len(numbers)
    if n <= _N_BINS:
        return torch.arange(n + 1)
    by_count = torch.linspace(0, n, _N_BINS // 2 + 1).long()
    steps = torch.linspace(float(numbers[0]), float(numbers[-1]), _N_BINS // 2, dtype=numbers.dtype)
    edges: Tensor = torch.unique(torch.cat([by_count, torch.searchsorted(numbers, steps)]))
    return edges


def _cut(sums: Tensor, n: int) -> Tensor:
    """The best way to cut bins into n stretches: n + 1 edges, given mass, sum and sum of squares up to each edge."""
    mass, first, second = sums[:, :, None] - sums[:, None, :]  # [j, i]: of the stretch from edge i to edge j
    costs = second - first.square() / mass.clamp(min=torch.finfo(mass.dtype).tiny)
    costs = torch.where(torch.ones_like(costs, dtype=torch.bool).tril(-1), costs, torch.inf)
    least, chosen = costs[:, 0], []
    for _ in range(n - 1):
        least, from_edge = (least + costs).min(1)
        chosen.append(from_edge)
    edges = [len(least) - 1]
    for from_edge in reversed(chosen):
        edges.append(int(from_edge[edges[-1]]))
    return torch.tensor([0, *reversed(edges)])


def nearest_lines(vectors: Tensor, lines: Tensor) -> Tensor:
    """The index of the line through 0 nearest to each vector: argmax over j of |<x_i, line_j>|, for unit lines."""
    step = max(1, _CHUNK // len(lines))
    return torch.cat([(part @ lines.T).abs().argmax(1) for part in torch.split(vectors, step)])


def fit_lines(vectors: Tensor, n_lines: int, *, seed: int = 0) -> Tensor:
    """Unit vectors u with a small sum over i of min over j, s of |x_i - s u_j|^2: k-means of directions.

    Vectors are assigned to the line with the largest |<x, u>|, and a line becomes the leading eigenvector of the sum of
    x x^T over its vectors, in turns. A line without vectors starts again at the vector that is approximated worst.

    Args:
        vectors: (n, d), none of them 0.
        seed: of the vectors that lines start at, and that are looked at where there are more than 131,072.
    Returns:
        (n_lines, d) float64, or as many as there are vectors.
    Source: Son et al., "Clustering Convolutional Kernels to Compress Deep Neural Networks", ECCV 2018, whose kernels
        are a centroid times a scale too. Differs: there the directions of all kernels are first fitted by k-means.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(vectors), generator=generator)[:_MAX_VECTORS].to(vectors.device)
    x = vectors[order].double()
    n_lines = min(n_lines, len(x))
    norms = x.norm(dim=1)
    drawn = torch.multinomial(norms.square().cpu(), n_lines, generator=generator).to(x.device)
    lines = torch.nn.functional.normalize(x[drawn], dim=1)
    codes = torch.full((len(x),), -1, device=x.device)
    for _ in range(_LINE_ROUNDS):
        before, codes = codes, nearest_lines(x, lines)
        if torch.equal(before, codes):
            break
        products = _sums_of_squares(x, codes, n_lines)
        lines = torch.linalg.eigh(products)[1][:, :, -1]
        empty = torch.bincount(codes, minlength=n_lines) == 0
        if empty.any():
            lost = norms.square() - (x * lines[codes]).sum(1).square()
            worst = lost.topk(int(empty.sum())).indices
            lines[empty] = torch.nn.functional.normalize(x[worst], dim=1)
    return lines


def _sums_of_squares(x: Tensor, codes: Tensor, n: int) -> Tensor:
    """For each cluster: the sum of x x^T over its vectors, (n, d, d)."""
    d = x.shape[1]
    sums = x.new_zeros(n, d, d)
    step = max(1, _CHUNK // d**2)
    for part, code in zip(torch.split(x, step), torch.split(codes, step), strict=True):
        sums.index_add_(0, code, part[:, :, None] * part[:, None])
    return sums
