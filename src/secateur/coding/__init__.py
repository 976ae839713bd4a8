"""Codings: how a weight is written (a mask, a grid of few levels, a codebook), as parametrizations that compose."""

from __future__ import annotations

from secateur.coding.attach import attach_, bake, bake_, codable, codings_of, settle_, value_of
from secateur.coding.base import CODINGS, Coding
from secateur.coding.edit import Code
from secateur.coding.mask import Mask
from secateur.coding.storage import pack_state, unpack_state

__all__ = [
    "CODINGS",
    "Code",
    "Coding",
    "Mask",
    "attach_",
    "bake",
    "bake_",
    "codable",
    "codings_of",
    "pack_state",
    "settle_",
    "unpack_state",
    "value_of",
]
