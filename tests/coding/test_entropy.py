"""Entropy-coded numbers come back, take as many bits as they must, and damage is seen."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.coding.entropy import decode, encode, entropy_bits
from secateur.errors import ConfigError, FileError


def drawn(shares: list[float], n: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor(shares), n, replacement=True, generator=generator)


def gaussian(n: int, n_symbols: int, width: float) -> Tensor:
    normal = torch.randn(n, generator=torch.Generator().manual_seed(0)) * width * n_symbols
    return (normal + n_symbols / 2).round().clamp(0, n_symbols - 1).long()


@given(st.integers(1, 300).flatmap(lambda k: st.tuples(st.just(k), st.lists(st.integers(0, k - 1), max_size=200))))
@settings(max_examples=200, deadline=None)
def test_codes_come_back(case: tuple[int, list[int]]) -> None:
    n_symbols, numbers = case
    codes = torch.tensor(numbers, dtype=torch.int64)
    assert torch.equal(decode(encode(codes, n_symbols), n_symbols, len(codes)), codes)


@pytest.mark.parametrize(
    ("codes", "n_symbols"),
    [
        (drawn([0.5, 0.5], 200_000), 2),
        (drawn([0.99, 0.01], 200_000), 2),
        (drawn([0.6, 0.2, 0.2], 200_000), 3),
        (drawn([1.0] * 16, 100_000), 16),
        (drawn([2.0**-i for i in range(12)], 100_000), 12),
        (gaussian(100_000, 16, 0.1), 16),
        (gaussian(100_000, 256, 0.1), 256),
        (gaussian(100_000, 4096, 0.2), 4096),
        (torch.zeros(1_000_000, dtype=torch.int64), 7),
        (torch.cat([torch.zeros(70_000), torch.arange(3000)]).long(), 3000),
    ],
)
def test_they_take_their_entropy_and_two_percent(codes: Tensor, n_symbols: int) -> None:
    packed = encode(codes, n_symbols)
    assert torch.equal(decode(packed, n_symbols, len(codes)), codes)
    table = 5 + 12 * len(codes.unique())  # bits of a length and of the digits behind the leading one
    assert len(packed) <= 1.02 * entropy_bits(codes) / 8 + (table + 5 * n_symbols) / 8 + 200


def test_entropy_is_that_of_the_counts() -> None:
    codes = drawn([0.7, 0.2, 0.1], 1000)
    p = np.bincount(codes.numpy()) / 1000
    assert entropy_bits(codes) == pytest.approx(-1000 * sum(x * np.log2(x) for x in p))


@pytest.mark.parametrize(("codes", "n"), [([0, 4], 4), ([-1], 4), ([0], 0), ([0], 4097)])
def test_what_is_no_code_is_refused(codes: list[int], n: int) -> None:
    with pytest.raises(ConfigError, match="symbols"):
        encode(torch.tensor(codes), n)


@pytest.mark.parametrize("n", [5, 500])
def test_every_changed_byte_and_every_cut_is_seen_or_decodes_to_codes(n: int) -> None:
    codes = drawn([0.6, 0.2, 0.1, 0.1], n)
    packed = encode(codes, 4)
    seen = 0
    for at in range(0, len(packed), 1 + len(packed) // 100):
        for damaged in (packed[:at], torch.cat([packed, packed[:4]]), _flipped(packed, at)):
            try:
                found = decode(damaged, 4, n)
            except FileError:
                seen += 1
            else:  # such as a frequency that nothing uses
                assert found.shape == (n,) and 0 <= int(found.min()) <= int(found.max()) < 4  # noqa: PT018
    assert seen >= 0.9 * 3 * len(range(0, len(packed), 1 + len(packed) // 100))


def _flipped(packed: Tensor, at: int) -> Tensor:
    changed = packed.clone()
    changed[at] ^= 1 << at % 8
    return changed


@given(st.binary(max_size=200), st.integers(1, 20), st.integers(0, 1000))
@settings(max_examples=300, deadline=None)
def test_any_bytes_decode_or_are_refused(data: bytes, n_symbols: int, n: int) -> None:
    packed = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else torch.zeros(0, dtype=torch.uint8)
    with contextlib.suppress(FileError):
        assert decode(packed, n_symbols, n).shape == (n,)


def test_another_count_is_refused() -> None:
    codes = drawn([0.6, 0.2, 0.1, 0.1], 1000)
    for n in (0, 999, 1001):
        with pytest.raises(FileError, match="damaged"):
            decode(encode(codes, 4), 4, n)
    with pytest.raises(FileError, match="damaged"):
        decode(encode(codes, 4).int(), 4, 1000)
