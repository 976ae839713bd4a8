"""Labelled samples in memory, and the cheap way to batches of them.

Images stay uint8 (CIFAR-10 takes 150 MB rather than 600) and are normalised batch by batch, in one vectorised step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from secateur.data.words import Words
from secateur.errors import DataError

CHUNK = 1024  # samples per step of a statistic: bounds the float copy of uint8 images

Pair = tuple[Tensor, Tensor]


class ArrayDataset(Dataset[Pair]):
    """Samples x with labels y; an item is ((x - mean) / std as float32, y as int64).

    Args:
        x: (N, C, ...) uint8, read as x / 255, or float; or (N, T) int64 token numbers, which stay as they are.
        y: (N,) integers.
        mean, std: (C,) in the units of the scaled x; None leaves it as it is.
    Raises:
        DataError: lengths or dtypes do not fit.

    >>> data = ArrayDataset(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1]), mean=torch.tensor([2.0]))
    >>> data[0]
    (tensor([-1.]), tensor(0))
    >>> data.fetch([1, 0])
    (tensor([[ 1.],
             [-1.]]), tensor([1, 0]))
    """

    def __init__(self, x: Tensor, y: Tensor, *, mean: Tensor | None = None, std: Tensor | None = None) -> None:
        if x.ndim < 2 or y.ndim != 1 or len(x) != len(y):
            raise DataError(f"x {tuple(x.shape)} and y {tuple(y.shape)} do not fit. Pass x as (N, C, ...), y as (N,).")
        self.is_tokens = x.dtype == torch.int64
        if not (x.dtype == torch.uint8 or x.is_floating_point() or self.is_tokens):
            raise DataError(f"x has dtype {x.dtype}. Pass uint8 images, int64 tokens, or convert it with x.float().")
        if y.is_floating_point() or y.is_complex():
            raise DataError(f"y has dtype {y.dtype}. Labels are class numbers: pass integers.")
        self.x, self.y = x, y.long()
        shape = (x.shape[1], *[1] * (x.ndim - 2))
        self.mean = (torch.zeros(x.shape[1]) if mean is None else mean.float()).reshape(shape)
        self.std = (torch.ones(x.shape[1]) if std is None else std.float()).reshape(shape)
        unit = 255.0 if x.dtype == torch.uint8 else 1.0
        self._gain, self._offset = 1 / (unit * self.std), -self.mean / self.std

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> Pair:
        return self._normalised(self.x[index]), self.y[index]

    def __getitems__(self, indices: Sequence[int]) -> list[Pair]:
        """Fetch a batch at once; a `DataLoader` calls this by itself and stacks what it gives."""
        x, y = self.fetch(indices)
        return list(zip(x.unbind(), y.unbind(), strict=True))

    def fetch(self, indices: Sequence[int] | Tensor | slice) -> Pair:
        """Return x (B, C, ...) float32, or token numbers, and y (B,) int64 of the given samples, already a batch."""
        at = indices if isinstance(indices, slice) else torch.as_tensor(indices, dtype=torch.long)
        return self._normalised(self.x[at]), self.y[at]

    def _normalised(self, x: Tensor) -> Tensor:
        return x if self.is_tokens else torch.addcmul(self._offset, x.float(), self._gain)

    def subset(self, indices: Sequence[int] | Tensor) -> ArrayDataset:
        """Return the given samples, in that order, under the same normalisation."""
        at = torch.as_tensor(indices, dtype=torch.long)
        return ArrayDataset(self.x[at], self.y[at], mean=self.mean.flatten(), std=self.std.flatten())

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one x, without the batch axis."""
        return tuple(self.x.shape[1:])


@dataclass(frozen=True)
class DataSplits:
    """Three disjoint sets of samples and the names of their classes. Statistics come from `train` alone."""

    train: ArrayDataset
    val: ArrayDataset  # to choose by: early stop, widths, hyper-parameters
    test: ArrayDataset  # to report, once
    classes: tuple[str, ...]
    words: Words | None = None  # what token numbers stand for

    def __str__(self) -> str:
        sizes = ", ".join(f"{len(part)} {name}" for name, part in self.parts().items())
        return f"{sizes} samples of shape {self.train.sample_shape}, {len(self.classes)} classes"

    def parts(self) -> dict[str, ArrayDataset]:
        """Return the three sets by name."""
        return {"train": self.train, "val": self.val, "test": self.test}


def channel_statistics(x: Tensor) -> Pair:
    """Return mean and standard deviation per channel, in the units that `ArrayDataset` reads x in.

    mean[c] = average over n, k of x[n, c, k]; std likewise, with divisor N K. A constant channel gets std 1.

    Args:
        x: (N, C, ...) uint8, read as x / 255, or float.
    Returns:
        (C,) float32 each.

    >>> channel_statistics(torch.tensor([[0.0, 5.0], [2.0, 5.0]]))
    (tensor([1., 5.]), tensor([1., 1.]))
    """
    axes = [0, *range(2, x.ndim)]
    unit = 255.0 if x.dtype == torch.uint8 else 1.0
    count = x.numel() / x.shape[1]
    chunks = torch.split(x, CHUNK)
    mean = torch.stack([part.double().sum(axes) for part in chunks]).sum(0) / count
    centre = mean.reshape(-1, *[1] * (x.ndim - 2))
    std = torch.stack([(part.double() - centre).square().sum(axes) for part in chunks]).sum(0).div(count).sqrt()
    std = torch.where(std > 1e-12 * (1 + mean.abs()), std, unit)
    return (mean / unit).float(), (std / unit).float()
