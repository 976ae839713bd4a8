"""Blocks: groups that choose their counts together, and the levels that a block may take."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from secateur.allocate.budget import Space


@dataclass(frozen=True)
class Block:
    """Groups under one tie (or one group without a tie), with the levels of width that they may take.

    The tie makes counts move by size / unit, where unit = gcd of the sizes; rounding allows each `stride`-th of these.
    Level j keeps n(j) = min(j * stride, unit) shares of 1 / unit, so counts[i](j) = n(j) * sizes[i] / unit. The top
    level is the full width, multiple or not.

    >>> block = make_block(("stream", "heads"), (768, 12), floor=0.2, round_to=4)
    >>> [block.counts(level) for level in range(block.lowest, block.highest + 1)]
    [{'stream': 256, 'heads': 4}, {'stream': 512, 'heads': 8}, {'stream': 768, 'heads': 12}]
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    unit: int  # shares that the full width divides into
    stride: int  # shares per level
    lowest: int  # the level of the floor
    highest: int  # the level of the full width
    kind: str = ""  # blocks of one kind are built alike

    def shares(self, level: int) -> int:
        """Return n(level), out of `unit`."""
        return min(level * self.stride, self.unit)

    def counts(self, level: int) -> dict[str, int]:
        """Return how many units each group keeps at `level`."""
        shares = self.shares(level)
        return {name: shares * size // self.unit for name, size in zip(self.names, self.sizes, strict=True)}

    def __str__(self) -> str:
        return "'" + "' tied to '".join(self.names) + "'"


def make_block(names: tuple[str, ...], sizes: tuple[int, ...], floor: float, round_to: int) -> Block:
    """Return the block of these groups, where each keeps at least `floor` of its size, 1 unit, and a multiple.

    A group narrower than `round_to` is not rounded.
    """
    unit = math.gcd(*sizes)
    stride = 1
    for size in sizes:
        if size >= round_to:
            moves = size // unit  # units of this group per share
            stride = math.lcm(stride, round_to // math.gcd(round_to, moves))
    # 1e-9 forgives the binary form of floors such as 0.1 * 30.
    fewest = max(-(-max(1, math.ceil(floor * size - 1e-9)) // (size // unit)) for size in sizes)
    highest = -(-unit // stride)
    return Block(names, sizes, unit, stride, min(-(-fewest // stride), highest), highest)


def make_blocks(space: Space, scored: Collection[str], floor: float, round_to: int) -> tuple[list[Block], list[str]]:
    """Return the blocks of all scored groups in the order of the space, and notes on those that cannot move.

    Ties that share a group are one tie. A block with a group that has no scores keeps its full width.

    >>> from secateur.allocate.budget import Cost
    >>> space = Space({"a": 4, "b": 4, "c": 2}, cost=lambda counts: Cost(0, 0), ties=(("a", "c"),))
    >>> [block.names for block in make_blocks(space, {"a", "b", "c"}, 0.1, 1)[0]]
    [('a', 'c'), ('b',)]
    """
    leader = {name: name for name in space.sizes}
    for tie in space.ties:
        joined = {leader[name] for name in tie}
        leader |= {name: min(joined) for name, head in leader.items() if head in joined}
    together: dict[str, list[str]] = {}
    for name, head in leader.items():
        together.setdefault(head, []).append(name)
    blocks, notes = [], []
    for names in together.values():
        here = tuple(name for name in names if name in scored)
        if not here:
            continue
        missing = [name for name in names if name not in scored]
        block = make_block(here, tuple(space.sizes[name] for name in here), 1.0 if missing else floor, round_to)
        blocks.append(replace(block, kind=" tied to ".join(sorted({space.kinds.get(name, "") for name in here}))))
        if missing:
            notes.append(
                f"{blocks[-1]} keeps its full width: it is tied to {', '.join(map(repr, missing))}, not scored."
            )
    stuck = [str(block) for block in blocks if 1 < block.unit <= block.stride]
    if stuck:
        notes.append(
            f"No smaller width is a multiple of round_to={round_to} for {', '.join(stuck)}; all is kept there."
        )
    return blocks, notes
