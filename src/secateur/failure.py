"""What went wrong when a skeleton ran: the operator, the axes to blame, and the sizes that the code asked for."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from secateur.dims.algebra import Dim
from secateur.numbers import parts_of
from secateur.record import Op


@dataclass(frozen=True, eq=False)
class Slot:
    """A part of an axis of an operator, so that the same place can be found in a module of the same class."""

    op: Op
    is_output: bool
    tensor: int
    axis: int
    dim: Dim
    path: tuple[int, ...] = ()  # which part of the axis (see `parts_of`)
    asked: int | None = None  # the size that the code asked for instead of the predicted one


@dataclass(frozen=True, eq=False)
class Failure:
    """The first operator that is not as predicted."""

    op: Op
    n_wrong: int
    fqn: str
    text: str
    wrong: tuple[Slot, ...]  # axes that are not as predicted, or that the failing operator should have made
    near: tuple[Slot, ...]  # changed axes of its inputs

    @property
    def progress(self) -> tuple[int, int]:
        return self.op.index, -self.n_wrong


def blame(error: Exception, op: Op, outputs: list[Slot], count: Callable[[Dim], int]) -> list[Slot]:
    """Of the axes that a failing operator should have made, those for which its message names another size.

    All of them, with nothing asked, where the message names none.
    """
    wrong = []
    for slot in outputs:
        asked = _asked(str(error), op, slot)
        if asked is not None and asked not in (-1, count(slot.dim)):
            wrong.append(replace(slot, asked=asked))
    return wrong or outputs


def _asked(message: str, op: Op, slot: Slot) -> int | None:
    """The size of an output axis that torch's message quotes: of a view, a split, or an unflatten."""
    if (found := re.search(r"shape '(\[[-\d, ]*\])' is invalid", message)) is not None:
        return _item(found[1], slot.axis)
    if (found := re.search(r"split_sizes=(\[[-\d, ]*\])", message)) is not None:
        value = op.outputs[0]
        axis = op.args[2] if len(op.args) > 2 else op.kwargs.get("dim", 0)
        same = value is not None and slot.axis == axis % len(value.shape)
        return _item(found[1], slot.tensor) if same else None
    if (
        found := re.search(r"Provided sizes (\[[-\d, ]*\]) don't multiply up to the size of dim (\d+)", message)
    ) is not None:
        return _item(found[1], slot.axis - int(found[2]))
    return None


def _item(text: str, i: int) -> int | None:
    sizes = ast.literal_eval(text)
    return sizes[i] if 0 <= i < len(sizes) else None


def with_parts(slots: Iterable[Slot]) -> Iterator[Slot]:
    """Each slot, and each part of its dim as a slot."""
    for slot in slots:
        for path, dim in parts_of(slot.dim):
            yield replace(slot, path=path, dim=dim, asked=slot.asked if not path else None)
