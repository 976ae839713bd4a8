"""The smallest part of a set that is enough for something."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def least(items: Sequence[T], is_enough: Callable[[list[T]], bool], given: Sequence[T] = ()) -> list[T]:
    """A part of `items`, none of which can be spared, for which `is_enough` holds; earlier items are preferred.

    Args:
        items: is enough as a whole. Not empty.
        is_enough: stays true when items are added. One item out of n is found in 2 log2(n) calls.
        given: what is there already.
    Source: Junker, "QuickXplain", AAAI 2004, algorithm 1.
    Differs: each half is tried alone first, as one culprit is what is met most.

    >>> least(range(100), {3, 70}.issubset)
    [3, 70]
    """
    if len(items) == 1:
        return list(items)
    first, second = items[: len(items) // 2], items[len(items) // 2 :]
    for half in (first, second):
        if is_enough([*given, *half]):
            return least(half, is_enough, given)
    kept = least(first, is_enough, [*given, *second])
    return [*kept, *least(second, is_enough, [*given, *kept])]
