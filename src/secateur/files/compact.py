"""The smallest form of a saved model: files squeezed by LZMA, and numbers in half precision where that loses nothing.

A header of JSON, thousands of short tensors and kept indices squeeze well; codes of quantized weights are near their
entropy already. Reading and writing take the whole file into memory.
"""

from __future__ import annotations

import lzma
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from secateur.errors import FileError

SUFFIX = ".xz"
HALF = "::half"
"""Ends the name of a tensor of single precision that is stored in half precision; no key of a state dict ends so."""

MAX_GROWTH = 200
"""What is unpacked may be so many times as long as the file, beside a megabyte: a hostile file must not fill memory."""


def squeeze(data: bytes) -> bytes:
    """Compress as an .xz stream.

    >>> unsqueeze(squeeze(b"a" * 1000), "there") == b"a" * 1000
    True
    """
    window = 1 << max(12, min(26, len(data).bit_length()))  # a window of 64 MB for a small file is all overhead
    how = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": window}
    return lzma.compress(data, filters=[how])


def unsqueeze(data: bytes, origin: str) -> bytes:
    """Undo `squeeze`.

    Raises:
        FileError: the data is no whole stream, or unpacks to far more than a model's file would.
    """
    most = MAX_GROWTH * len(data) + 2**20
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    try:
        found = unpacker.decompress(data, max_length=most)
    except lzma.LZMAError as error:
        raise FileError(f"'{origin}' can't be unpacked: {error}. Restore it from a copy.") from error
    if not unpacker.eof or unpacker.unused_data:
        what = f"unpacks to more than {most:,} bytes" if len(found) >= most else "is not a whole stream"
        raise FileError(f"'{origin}' {what}. Don't load it, or restore it from a copy.")
    return found


def narrow(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put numbers into half precision where it holds all of a tensor's exactly, under names that say so.

    >>> list(narrow({"a": torch.tensor([0.5]), "b": torch.tensor([0.1])}))
    ['a::half', 'b']
    """
    halves = {key: t.half() for key, t in tensors.items() if t.dtype == torch.float32}
    exact = {key for key, half in halves.items() if torch.equal(half.float(), tensors[key])}
    return {key + HALF if key in exact else key: halves[key] if key in exact else t for key, t in tensors.items()}


def widen(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `narrow`."""
    return {key.removesuffix(HALF): t.float() if key.endswith(HALF) else t for key, t in tensors.items()}


def read_bytes(path: Path) -> bytes:
    """Read a file, and unpack it where it is squeezed."""
    data = path.read_bytes()
    return unsqueeze(data, str(path)) if path.suffix == SUFFIX else data
