"""What depends on the place in the run alone: learning rate, order of samples, seeds.

All are functions of (seed, epoch, step), never of what ran before; so a resumed run equals one without a break.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


def cosine_lr(step: int, n_steps: int, *, lr: float, warmup_fraction: float) -> float:
    """Return the learning rate of a step: linear from lr/w to lr in w = fraction n_steps steps, then half a cosine.

    Source: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, one period.

    >>> [round(cosine_lr(s, 6, lr=1.0, warmup_fraction=1 / 3), 3) for s in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    n_warmup = math.ceil(warmup_fraction * n_steps)
    if step < n_warmup:
        return lr * (step + 1) / n_warmup
    return lr * 0.5 * (1 + math.cos(math.pi * (step - n_warmup) / (n_steps - n_warmup)))


def derived_seed(seed: int, *place: int) -> int:
    """Return a seed for one place in the run, for example (epoch, process). Unlike places give unrelated seeds.

    >>> derived_seed(0, 1, 2) == derived_seed(0, 1, 2) != derived_seed(0, 2, 1)
    True
    """
    high, low = np.random.SeedSequence([seed, *place]).generate_state(2)
    return (int(high) << 31 | int(low) >> 1) & (2**63 - 1)


class EpochBatches(Sampler[list[int]]):
    """Batches of shuffled indices; the order is a function of (seed, epoch). `set_epoch` chooses the epoch.

    A rest of one sample is left out (batch norm cannot learn from it), unless it is all there is.

    >>> order = EpochBatches(5, batch_size=2, seed=0)
    >>> [len(batch) for batch in order], len(order)
    ([2, 2], 2)
    """

    drop_last = False  # read by Accelerate, as is batch_size

    def __init__(self, n_samples: int, *, batch_size: int, seed: int) -> None:
        self.n_samples, self.batch_size, self.seed = n_samples, batch_size, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(self.n_samples, self.batch_size)
        return whole + (rest > 1 or whole == 0)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        order = torch.randperm(self.n_samples, generator=generator).tolist()
        for i in range(len(self)):
            yield order[i * self.batch_size : (i + 1) * self.batch_size]
