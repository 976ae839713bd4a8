"""Whole numbers as the fewest bytes: of equal width, or near their entropy where that is shorter."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from secateur.coding.bits import pack_bits, unpack_bits
from secateur.coding.entropy import decode, encode, entropy_bits
from secateur.errors import FileError


def pack_codes(codes: Tensor, n_symbols: int) -> dict[str, Tensor]:
    """Codes (n,) in [0, n_symbols) as `codes` of equal width, or as `entropy` where that takes fewer bytes.

    >>> import torch
    >>> pack_codes(torch.tensor([0, 1, 2, 3]), 4)
    {'codes': tensor([27], dtype=torch.uint8)}
    """
    plain = pack_bits(codes, _width(n_symbols))
    if entropy_bits(codes) < 8 * len(plain) and len(coded := encode(codes, n_symbols)) < len(plain):
        return {"entropy": coded}
    return {"codes": plain}


def unpack_codes(packed: Mapping[str, Tensor], n_symbols: int, n: int) -> Tensor:
    """Undo `pack_codes`: (n,) int64. Other entries of `packed` are left to the caller.

    Raises:
        FileError: there is not exactly one of the two, its bytes are not those of n codes, or a code is too large.
    """
    if len(packed.keys() & {"codes", "entropy"}) != 1:
        raise FileError(f"Codes are stored as 'codes' or as 'entropy', not as {sorted(packed)}. Restore the file.")
    if "entropy" in packed:
        return decode(packed["entropy"], n_symbols, n)
    codes = unpack_bits(packed["codes"], _width(n_symbols), n)
    if n and int(codes.max()) >= n_symbols:
        raise FileError(f"A code of {int(codes.max())} is beyond {n_symbols} symbols. Restore the file from a copy.")
    return codes


def _width(n_symbols: int) -> int:
    return max(1, (n_symbols - 1).bit_length())
