"""Whole numbers near their entropy: interleaved range coding with asymmetric numeral systems (rANS).

The bytes, little-endian: the number of lanes (uint32); the frequencies (5 bits each for the length, then the binary
digits behind the leading one, without gaps); the state of each lane (uint64); the words (uint32) in the order of
decoding.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from secateur.coding.bits import pack_bits, unpack_bits
from secateur.errors import ConfigError, FileError

_PRECISION = 16  # bits of a frequency: all of them sum to 2 ** 16
_START = np.uint64(1 << 32)  # states lie in [2 ** 32, 2 ** 64)
_WORD = np.uint64(32)
_LANE_BYTES = 800  # of payload for each lane, whose state costs 8: 1 %
_MAX_STEPS = 1 << 16  # of a lane
MAX_SYMBOLS = 4096
CODES_PER_BYTE = _MAX_STEPS // 8
"""At most: a lane, whose state takes 8 bytes, gives so many codes per byte even where all are the same."""

_LENGTH_BITS = 5
_PLACES = np.arange(_PRECISION, -1, -1, dtype=np.uint64)

Ints = npt.NDArray[np.uint64]


def encode(codes: Tensor, n_symbols: int) -> Tensor:
    """Write codes in about as many bits as their entropy: (n,) whole numbers in [0, n_symbols) -> uint8.

    Many lanes code side by side, lane i the codes i, i + n_lanes, …, so that each step is one operation on arrays. A
    lane's state x takes in a symbol of frequency f that starts at c as x <- (x // f) * 2^16 + x mod f + c.

    Raises:
        ConfigError: a code is outside the range, or n_symbols is outside [1, 4096].
    Source: Duda, "Asymmetric numeral systems", arXiv:1311.2540, 2013; Giesen, "Interleaved entropy coders",
        arXiv:1402.3392, 2014.

    >>> codes = (torch.arange(10000) % 10 == 0).long()  # one in ten is a one: 0.47 bits each
    >>> packed = encode(codes, 2)
    >>> len(packed), torch.equal(decode(packed, 2, len(codes)), codes)
    (602, True)
    """
    if not 1 <= n_symbols <= MAX_SYMBOLS:
        raise ConfigError(f"n_symbols={n_symbols} is outside [1, {MAX_SYMBOLS}].")
    numbers = codes.detach().cpu().numpy().astype(np.int64).reshape(-1)
    if not len(numbers):
        return torch.zeros(0, dtype=torch.uint8)
    if numbers.min() < 0 or numbers.max() >= n_symbols:
        raise ConfigError(f"Codes from {numbers.min()} to {numbers.max()} are not {n_symbols} symbols.")
    counts = np.bincount(numbers, minlength=n_symbols)
    frequencies = _frequencies(counts)
    payload = -float((counts[counts > 0] * np.log2(frequencies[counts > 0] / 2**_PRECISION)).sum()) / 8
    n_lanes = max(1, int(payload) // _LANE_BYTES, -(-len(numbers) // _MAX_STEPS))
    states, words = _encode_lanes(numbers, frequencies, n_lanes)
    parts = (
        np.uint32(n_lanes).tobytes(),
        _pack_table(frequencies),
        states.astype("<u8").tobytes(),
        words.astype("<u4").tobytes(),
    )
    return torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)


def decode(packed: Tensor, n_symbols: int, n: int) -> Tensor:
    """Undo `encode`: (n,) int64.

    Raises:
        FileError: the bytes are not what `encode` writes for n codes of that alphabet.
    """
    if packed.dtype != torch.uint8 or packed.ndim != 1 or (n == 0) != (len(packed) == 0):
        raise _damaged(f"{tuple(packed.shape)} of {packed.dtype} are not the bytes of {n} codes")
    if n == 0:
        return torch.zeros(0, dtype=torch.int64)
    data = packed.cpu().numpy().tobytes()
    frequencies, at = _unpack_table(data, 4, n_symbols)
    n_lanes = int.from_bytes(data[:4], "little")
    if not -(-n // _MAX_STEPS) <= n_lanes <= (len(data) - at) // 8 or (len(data) - at) % 4:
        raise _damaged(f"{n_lanes} lanes do not fit {n} codes in {len(data)} bytes")
    states = np.frombuffer(data, "<u8", n_lanes, at).astype(np.uint64)
    words = np.frombuffer(data, "<u4", offset=at + 8 * n_lanes).astype(np.uint64)
    return torch.from_numpy(_decode_lanes(states, words, frequencies, n))


def entropy_bits(codes: Tensor) -> float:
    """The least that n codes cost when each is coded by its frequency alone: n * H bits.

    >>> entropy_bits(torch.tensor([0, 1, 2, 3]))
    8.0
    """
    counts = torch.unique(codes, return_counts=True)[1].double()
    return float((counts * (counts.sum() / counts).log2()).sum())


def _encode_lanes(numbers: npt.NDArray[np.int64], frequencies: Ints, n_lanes: int) -> tuple[Ints, Ints]:
    """The last state of each lane and the words; the last codes go in first, so that decoding runs forwards."""
    shift = np.uint64(64 - _PRECISION)
    starts = np.cumsum(frequencies) - frequencies
    states = np.full(n_lanes, _START)
    written = []
    for begin in range((len(numbers) - 1) // n_lanes * n_lanes, -1, -n_lanes):
        symbols = numbers[begin : begin + n_lanes]
        x, f = states[: len(symbols)], frequencies[symbols]
        full = (x >> shift) >= f
        written.append(x[full] & np.uint64(0xFFFFFFFF))
        x[full] >>= _WORD
        quotient = x // f
        x += quotient * (np.uint64(1 << _PRECISION) - f) + starts[symbols]
    return states, np.concatenate(written[::-1])


def _decode_lanes(states: Ints, words: Ints, frequencies: Ints, n: int) -> npt.NDArray[np.int64]:
    mask, precision = np.uint64((1 << _PRECISION) - 1), np.uint64(_PRECISION)
    starts = np.cumsum(frequencies) - frequencies
    symbol_at = np.repeat(np.arange(len(frequencies)), frequencies.astype(np.int64))
    codes = np.empty(n, np.int64)
    at = 0
    for begin in range(0, n, len(states)):
        x = states[: min(len(states), n - begin)]
        slot = x & mask
        symbols = symbol_at[slot]
        codes[begin : begin + len(x)] = symbols
        x[:] = frequencies[symbols] * (x >> precision) + slot - starts[symbols]
        empty = np.flatnonzero(x < _START)
        if at + len(empty) > len(words):
            raise _damaged("the words end before the codes do")
        x[empty] = (x[empty] << _WORD) | words[at : at + len(empty)]
        at += len(empty)
    if at != len(words) or bool((states != _START).any()):
        raise _damaged("the codes end before the words do")
    return codes


def _frequencies(counts: npt.NDArray[np.int64]) -> Ints:
    """Counts as fractions of 2 ** 16: at least 1 for what occurs, the rest by size, largest remainders up."""
    share, large = 1 << _PRECISION, counts > 0
    found = large.astype(np.int64)
    while True:
        exact = np.where(large, counts * (share / counts[large].sum()), 0)
        small = large & (exact < 1)
        if not small.any():
            break
        large &= ~small
        share -= int(small.sum())
    found[large] = np.floor(exact[large])
    missing = (1 << _PRECISION) - int(found.sum())
    found[np.argsort(np.floor(exact) - exact, kind="stable")[:missing]] += 1
    return found.astype(np.uint64)


def _pack_table(frequencies: Ints) -> bytes:
    lengths = np.array([f.bit_length() for f in frequencies.tolist()])
    digits = (frequencies[:, None] >> _PLACES & np.uint64(1)).astype(np.uint8)
    lengths_packed = pack_bits(torch.from_numpy(lengths), _LENGTH_BITS).numpy().tobytes()
    return lengths_packed + np.packbits(digits[_behind_leading(lengths)]).tobytes()


def _unpack_table(data: bytes, at: int, n_symbols: int) -> tuple[Ints, int]:
    """The frequencies, and where the bytes go on."""
    end = at + -(-n_symbols * _LENGTH_BITS // 8)
    table = torch.frombuffer(bytearray(data[at:end]) or bytearray(1), dtype=torch.uint8)
    lengths = unpack_bits(table, _LENGTH_BITS, n_symbols).numpy()
    if lengths.max() > _PRECISION + 1:
        raise _damaged("a frequency is above 1")
    places = _behind_leading(lengths)
    n_digits = int(places.sum())
    rest = np.frombuffer(data[end : end + -(-n_digits // 8)], np.uint8)
    if len(rest) * 8 < n_digits:
        raise _damaged("the frequencies are cut off")
    digits = np.zeros(places.shape, np.uint64)
    digits[places] = np.unpackbits(rest, count=n_digits)
    leading = np.where(lengths > 0, 1 << np.maximum(lengths - 1, 0), 0).astype(np.uint64)
    frequencies = leading + (digits << _PLACES).sum(1, dtype=np.uint64)
    if int(frequencies.sum()) != 1 << _PRECISION:
        raise _damaged("the frequencies do not sum to 1")
    return frequencies, end + len(rest)


def _behind_leading(lengths: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(n, 17): which binary digits of numbers of these lengths stand behind the leading one."""
    behind: npt.NDArray[np.bool_] = _PLACES.astype(np.int64) < lengths[:, None] - 1
    return behind


def _damaged(what: str) -> FileError:
    return FileError(f"Entropy-coded numbers are damaged: {what}. Restore the file from a copy.")
