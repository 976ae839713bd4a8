"""Depth: whole blocks that go."""

from __future__ import annotations

from secateur.depth.blocks import Block, Identity, find_blocks
from secateur.depth.choosing import CHOICES, Data
from secateur.depth.edit import Removal

__all__ = ["CHOICES", "Block", "Data", "Identity", "Removal", "find_blocks"]
