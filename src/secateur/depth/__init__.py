"""Depth: whole blocks that go."""

from __future__ import annotations

from secateur.depth.blocks import Block, Identity, find_blocks
from secateur.depth.choosing import CHOICES
from secateur.depth.edit import Drop
from secateur.depth.step import DropBlocks, remove

__all__ = ["CHOICES", "Block", "Drop", "DropBlocks", "Identity", "find_blocks", "remove"]
