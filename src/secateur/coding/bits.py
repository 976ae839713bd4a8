"""Whole numbers of few bits, side by side in bytes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.errors import ConfigError, FileError


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """Write codes of `bits` bits one after another, most significant bit first; the last byte is filled with zeros.

    Args:
        codes: (n,) whole numbers in [0, 2 ** bits), or booleans.
        bits: 1 to 16.
    Returns:
        (ceil(n * bits / 8),) uint8.
    Raises:
        ConfigError: a code does not fit.

    >>> pack_bits(torch.tensor([1, 2, 3]), 4)
    tensor([18, 48], dtype=torch.uint8)
    """
    if not 1 <= bits <= 16:
        raise ConfigError(f"bits={bits} is outside [1, 16].")
    low, high = (int(codes.min()), int(codes.max())) if len(codes) else (0, 0)
    if not 0 <= low <= high < 1 << bits:
        raise ConfigError(f"Codes from {low} to {high} do not fit into {bits} bits.")
    numbers = codes.cpu().numpy().astype(np.uint16)
    shifts = np.arange(bits - 1, -1, -1, dtype=np.uint16)
    return torch.from_numpy(np.packbits((numbers[:, None] >> shifts & 1).astype(np.uint8).reshape(-1)))


def unpack_bits(packed: Tensor, bits: int, n: int) -> Tensor:
    """Undo `pack_bits`: (n,) int64.

    Raises:
        FileError: the bytes are not those of n codes.

    >>> unpack_bits(torch.tensor([18, 48], dtype=torch.uint8), 4, 3)
    tensor([1, 2, 3])
    """
    if packed.dtype != torch.uint8 or packed.shape != (-(-n * bits // 8),):
        raise FileError(
            f"{n} codes of {bits} bits are {-(-n * bits // 8)} bytes, not {tuple(packed.shape)} of {packed.dtype}."
            " Restore the file from a copy."
        )
    spread = np.unpackbits(packed.cpu().numpy(), count=n * bits).reshape(n, bits)
    return torch.from_numpy(spread.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64)))
