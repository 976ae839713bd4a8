"""Forms of factoring: a kernel as a chain of smaller ones, found in closed form or by alternating least squares.

Every form sees one kernel, (g, o, i, *k): groups, outputs and inputs of a group, window. A matrix is a kernel without a
window. A form gives factors of the same layout, applied one after another; the first reads the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from secateur.compensation.moments import damped
from secateur.registry import Registry

Rank = tuple[int, ...]
Shape = Sequence[int]
Level = tuple[Rank, float]
"""A rank, and the squared error that it leaves as a fraction of the whole."""

_SWEEPS = 60  # of alternating least squares
_TRIAL_SWEEPS = 12  # to see what a rank is worth
_DAMPING = 1e-6  # of a Gram matrix: enough to tell directions that the data never shows by their weights


class Parts(Protocol):
    """A kernel taken apart, before a rank is chosen."""

    def levels(self) -> list[Level]:
        """Ranks worth choosing, from the least parameters to the most; more parameters never leave more error."""
        ...

    def factors(self, rank: Rank) -> list[Tensor]:
        """The factors of that rank, float64, of equal norms in each unit."""
        ...


class Form(Protocol):
    """How a kernel becomes a chain."""

    def fault(self, shape: Shape) -> str:
        """Why a kernel of this shape can't take the form; empty where it can."""
        ...

    def shapes(self, shape: Shape, rank: Rank) -> list[tuple[int, ...]]:
        """The shapes of the factors."""
        ...

    def axes(self, n_axes: int) -> list[range]:
        """Which axes of the window each factor slides along: together all of them, each once."""
        ...

    def take_apart(self, kernel: Tensor, gram: Tensor | None) -> Parts:
        """Get ready to factor a kernel.

        Args:
            gram: (g, i * k, i * k) float64, sum of x x^T over what the layer reads; None weighs all inputs alike.
        """
        ...

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        """The kernel that the chain computes."""
        ...


FORMS = Registry[str, type[Form]]("form")


def _ones(shape: Shape) -> tuple[int, ...]:
    return (1,) * (len(shape) - 3)


def _tails(energy: Tensor) -> Tensor:
    """Of squared singular values (g, n): the fraction beyond the first r, r = 1 … n, over all groups."""
    whole = energy.sum(0)
    return 1 - whole.cumsum(0) / whole.sum().clamp(min=torch.finfo(energy.dtype).tiny)


def _single(errors: Tensor) -> list[Level]:
    return [((r + 1,), max(0.0, e)) for r, e in enumerate(errors.tolist())]


def _no_window(shape: Shape) -> str:
    return "" if math.prod(shape[3:]) > 1 else "it has no window"


@dataclass(frozen=True)
class _Truncated:
    """A matrix (g, m, n) as left (g, m, r) @ right (g, r, n), of any rank up to full."""

    matrix: Tensor
    left: Tensor  # orthonormal columns, the most telling first
    errors: Tensor
    shape: Shape
    is_spatial: bool = False

    def levels(self) -> list[Level]:
        return _single(self.errors)

    def factors(self, rank: Rank) -> list[Tensor]:
        g, o, i, *window = self.shape
        left = self.left[:, :, : rank[0]]
        right = left.mT @ self.matrix
        scale = right.norm(dim=-1).clamp(min=torch.finfo(right.dtype).tiny).sqrt()  # columns of `left` have norm 1
        left, right = left * scale[:, None, :], right / scale[:, :, None]
        if not self.is_spatial:
            return [right.reshape(g, -1, i, *window), left.reshape(g, o, -1, *_ones(self.shape))]
        y, x = window
        first = left.reshape(g, i, y, -1).permute(0, 3, 1, 2)
        return [first[..., None], right.reshape(g, -1, o, x).movedim(1, 2)[..., None, :]]


@FORMS.register("svd")
class Svd:
    """kernel[o, i, k] = sum_r b[o, r] a[r, i, k]: a narrower layer, then a matrix (for convolutions, 1 x 1).

    Among all kernels of that rank it has the least sum of |(W - W') x|^2 over the inputs of `gram`: W' = U_r U_r^T W,
    where U_r are the leading eigenvectors of W gram W^T. Without a Gram matrix it is truncated SVD (Eckart and Young).
    Source: Zhang et al., "Accelerating Very Deep Convolutional Networks", TPAMI 2016, section 3.1. It is the same
    matrix as that of Wang et al., "SVD-LLM", ICLR 2025, section 3.1, who whiten with a Cholesky factor of the Gram
    matrix, C, and truncate the SVD of W C; here nothing is inverted, so inputs may be linearly dependent.
    """

    def fault(self, shape: Shape) -> str:
        return ""

    def shapes(self, shape: Shape, rank: Rank) -> list[tuple[int, ...]]:
        g, o, i, *window = shape
        return [(g, *rank, i, *window), (g, o, *rank, *_ones(shape))]

    def axes(self, n_axes: int) -> list[range]:
        return [range(n_axes), range(0)]

    def take_apart(self, kernel: Tensor, gram: Tensor | None) -> Parts:
        matrix = kernel.flatten(2)
        if gram is None:
            left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
            return _Truncated(matrix, left, _tails(values.square()), kernel.shape)
        basis, rest = torch.linalg.qr(matrix)
        energy, turned = torch.linalg.eigh(rest @ damped(gram, _DAMPING) @ rest.mT)
        return _Truncated(matrix, basis @ turned.flip(-1), _tails(energy.flip(-1).clamp(min=0)), kernel.shape)

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, second = factors
        return torch.einsum("gri...,gor->goi...", first, second.flatten(2))


@FORMS.register("spatial")
class Spatial:
    """kernel[o, i, y, x] = sum_r h[o, r, x] v[r, i, y]: a k x 1 convolution, then a 1 x k one.

    Source: Tai et al., "Convolutional neural networks with low-rank regularization", ICLR 2016, section 2: the global
    optimum by one SVD of the (i y) x (o x) matrix. All inputs weigh alike.
    """

    def fault(self, shape: Shape) -> str:
        return "" if len(shape) == 5 and min(shape[3:]) > 1 else "its window has no two axes"

    def shapes(self, shape: Shape, rank: Rank) -> list[tuple[int, ...]]:
        g, o, i, y, x = shape
        return [(g, *rank, i, y, 1), (g, o, *rank, 1, x)]

    def axes(self, n_axes: int) -> list[range]:
        return [range(1), range(1, 2)]

    def take_apart(self, kernel: Tensor, gram: Tensor | None) -> Parts:
        matrix = kernel.permute(0, 2, 3, 1, 4).flatten(3).flatten(1, 2)
        left, values, _ = torch.linalg.svd(matrix, full_matrices=False)
        return _Truncated(matrix, left, _tails(values.square()), kernel.shape, is_spatial=True)

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, second = factors
        return torch.einsum("griy,gorx->goiyx", first[..., 0], second[..., 0, :])


@dataclass(frozen=True)
class _Core:
    """An orthonormal basis of each side (g, o, o') and (g, i, i'), and the kernel in these bases, (g, o', i', *k)."""

    outputs: Tensor
    inputs: Tensor
    core: Tensor

    def levels(self) -> list[Level]:
        energy = self.core.square().flatten(3).sum((0, 3))
        kept = energy.cumsum(0).cumsum(1) / energy.sum().clamp(min=torch.finfo(energy.dtype).tiny)
        n_out, n_in = kept.shape
        outs, ins = torch.arange(1, n_out + 1)[:, None], torch.arange(1, n_in + 1)[None]
        window = math.prod(self.core.shape[3:])
        costs = outs * self.outputs.shape[1] + ins * self.inputs.shape[1] + outs * ins * window
        order = costs.flatten().argsort(stable=True)
        best = kept.flatten()[order].cummax(0).values
        is_better = torch.cat([torch.ones(1, dtype=torch.bool), best.diff().cpu() > 0])  # than all cheaper pairs
        chosen = order.cpu()[is_better]
        return [
            ((at // n_in + 1, at % n_in + 1), max(0.0, 1 - float(kept[at // n_in, at % n_in])))
            for at in chosen.tolist()
        ]

    def factors(self, rank: Rank) -> list[Tensor]:
        n_out, n_in = rank
        ones = _ones(self.core.shape)
        first = self.inputs[:, :, :n_in].mT
        last = self.outputs[:, :, :n_out]
        return [first.reshape(*first.shape, *ones), self.core[:, :n_out, :n_in], last.reshape(*last.shape, *ones)]


@FORMS.register("tucker")
class Tucker:
    """kernel[o, i, k] = sum_{r, s} u[o, r] core[r, s, k] v[i, s]: 1 x 1, a smaller window, 1 x 1. Its rank is (r, s).

    Source: Kim et al., "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile Applications",
    ICLR 2016, section 3.1 (Tucker-2). Differs: the bases are singular vectors of each side (HOSVD), whose error is at
    most twice the best; for each number of parameters the pair of ranks with the least error is offered.
    """

    def fault(self, shape: Shape) -> str:
        return _no_window(shape)

    def shapes(self, shape: Shape, rank: Rank) -> list[tuple[int, ...]]:
        (g, o, i, *window), (r, s) = shape, rank
        return [(g, s, i, *_ones(shape)), (g, r, s, *window), (g, o, r, *_ones(shape))]

    def axes(self, n_axes: int) -> list[range]:
        return [range(0), range(n_axes), range(0)]

    def take_apart(self, kernel: Tensor, gram: Tensor | None) -> Parts:
        outputs = torch.linalg.svd(kernel.flatten(2), full_matrices=False).U
        inputs = torch.linalg.svd(kernel.movedim(2, 1).flatten(2), full_matrices=False).U
        core = torch.einsum("goi...,gor,gis->grs...", kernel, outputs, inputs)
        return _Core(outputs, inputs, core)

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, core, last = factors
        return torch.einsum("gsi,grs...,gor->goi...", first.flatten(2), core, last.flatten(2))


@dataclass(frozen=True)
class _Alternating:
    """Outer products found by alternating least squares, from singular vectors, anew for each rank."""

    kernel: Tensor

    def levels(self) -> list[Level]:
        whole = float(self.kernel.square().sum()) or 1.0
        o, i = self.kernel.shape[1:3]
        most = self.kernel[0].numel() // (o + i + math.prod(self.kernel.shape[3:]))  # beyond, nothing is saved
        found: list[Level] = []
        for rank in sorted({max(1, round(most * part / 8)) for part in range(1, 9)}) if most else ():
            rest = self.kernel - Cp().product(self._fit(rank, _TRIAL_SWEEPS))
            error = float(rest.square().sum()) / whole
            if not found or error < found[-1][1]:
                found.append(((rank,), error))
        return found

    def factors(self, rank: Rank) -> list[Tensor]:
        return self._fit(rank[0], _SWEEPS)

    def _fit(self, rank: int, n_sweeps: int) -> list[Tensor]:
        tensor = self.kernel.flatten(3)
        modes = [self._start(tensor, axis, rank) for axis in (1, 2, 3)]
        for _ in range(n_sweeps):
            for at, terms in enumerate(("gabc,gbr,gcr->gar", "gabc,gar,gcr->gbr", "gabc,gar,gbr->gcr")):
                a, b = (mode for j, mode in enumerate(modes) if j != at)
                seen = torch.einsum(terms, tensor, a, b)
                modes[at] = torch.linalg.solve(damped((a.mT @ a) * (b.mT @ b), 1e-12), seen.mT).mT
        norms = [mode.norm(dim=1, keepdim=True).clamp(min=torch.finfo(tensor.dtype).tiny) for mode in modes]
        scale = torch.stack(norms).log().mean(0).exp()
        outs, ins, window = (mode / norm * scale for mode, norm in zip(modes, norms, strict=True))
        g, _, _, *size = self.kernel.shape
        ones = _ones(self.kernel.shape)
        ins, window = ins.mT, window.mT
        return [
            ins.reshape(*ins.shape, *ones),
            window.reshape(g, rank, 1, *size),
            outs.reshape(*outs.shape, *ones),
        ]

    def _start(self, tensor: Tensor, axis: int, rank: int) -> Tensor:
        unfolded = tensor.movedim(axis, 1).flatten(2)
        left = torch.linalg.svd(unfolded, full_matrices=False).U[:, :, :rank]
        generator = torch.Generator().manual_seed(0)
        more = torch.randn(*left.shape[:2], rank - left.shape[2], generator=generator, dtype=left.dtype)
        return torch.cat([left, more.to(left.device) / math.sqrt(left.shape[1])], 2)


@FORMS.register("cp")
class Cp:
    """kernel[o, i, k] = sum_r u[o, r] s[r, k] v[i, r]: 1 x 1, a window for each unit (depthwise), 1 x 1.

    Source: Lebedev et al., "Speeding-up Convolutional Neural Networks Using Fine-tuned CP-Decomposition", ICLR 2015,
    section 3. Differs: the axes of the window stay together, so that there are three layers rather than four.
    """

    def fault(self, shape: Shape) -> str:
        return _no_window(shape)

    def shapes(self, shape: Shape, rank: Rank) -> list[tuple[int, ...]]:
        g, o, i, *window = shape
        return [(g, *rank, i, *_ones(shape)), (g, *rank, 1, *window), (g, o, *rank, *_ones(shape))]

    def axes(self, n_axes: int) -> list[range]:
        return [range(0), range(n_axes), range(0)]

    def take_apart(self, kernel: Tensor, gram: Tensor | None) -> Parts:
        return _Alternating(kernel)

    def product(self, factors: Sequence[Tensor]) -> Tensor:
        first, window, last = factors
        return torch.einsum("gri,gr...,gor->goi...", first.flatten(2), window[:, :, 0], last.flatten(2))
