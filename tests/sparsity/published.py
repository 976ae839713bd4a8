"""Wanda and SparseGPT as their papers have them, one weight at a time: slow and plain."""

from __future__ import annotations

import torch
from torch import Tensor


def wanda(weight: Tensor, x: Tensor, sparsity: float) -> Tensor:
    """Sun et al., algorithm 1: in each output row, the weights with the least |w| * |x_j| become zero.

    weight (out, in), x (n, in).
    """
    pruned = weight.clone()
    for o in range(len(weight)):
        metric = [abs(float(w)) * float(x[:, j].norm()) for j, w in enumerate(weight[o])]
        for j in sorted(range(len(metric)), key=metric.__getitem__)[: int(len(metric) * sparsity)]:
            pruned[o, j] = 0
    return pruned


def wanda_nm(weight: Tensor, x: Tensor, n: int, m: int) -> Tensor:
    """The same, where n of each m weights of a row stay."""
    pruned = weight.clone()
    for start in range(0, weight.shape[1], m):
        part = slice(start, start + m)
        pruned[:, part] = wanda(weight[:, part], x[:, part], 1 - n / m)
    return pruned


def sparsegpt(weight: Tensor, x: Tensor, sparsity: float, block: int, damping: float, m: int = 0) -> Tensor:
    """Frantar and Alistarh, algorithm 1 with B = Bs = block: row by row, with the inverse of what is left of H.

    The mask of a block is chosen when it is reached, among all rows; with m, among m columns of one row (block = m).
    """
    w = weight.double().clone()
    h = x.double().T @ x.double()
    h += damping * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    columns = w.shape[1]
    for start in range(0, columns, block):
        end = min(columns, start + block)
        costs = {}
        for j in range(start, end):  # the inverse of H without what is coded already, at j
            costs[j] = torch.linalg.inv(h[j:, j:])[0, 0]
        cost = torch.stack([w[:, j] ** 2 / costs[j] for j in range(start, end)], 1)
        gone = torch.zeros_like(cost, dtype=torch.bool)
        rows = cost if m else cost.reshape(1, -1)
        for r, row in enumerate(rows):
            order = row.argsort(stable=True)[: round(sparsity * row.numel())]
            gone.view(rows.shape)[r, order] = True
        for j in range(start, end):
            inverse = torch.linalg.inv(h[j:, j:])
            for o in range(len(w)):
                if gone[o, j - start]:
                    w[o, j:] -= w[o, j] / inverse[0, 0] * inverse[0]
                    w[o, j] = 0
    return w.to(weight.dtype)


def best_for(weight: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """The weights on a mask that bring x W^T nearest to what it was: least squares, row by row."""
    found = torch.zeros_like(weight)
    for o, stays in enumerate(mask):
        if stays.any():
            found[o, stays] = torch.linalg.lstsq(x[:, stays], x @ weight[o]).solution
    return found
