"""Blocks: members of lists of modules that give what they take, so that the network can do without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from secateur.tensors import Inputs, module_lists, tensors_in
from secateur.watching import first_of, watch


@dataclass(frozen=True)
class Block:
    """A module that may go.

    Attributes:
        holder: fqn of the `ModuleList` or `Sequential` that it is in; `index` is its place there.
        n_outputs: length of the tuple that it returns; 0 where it returns a tensor alone.
    """

    fqn: str
    holder: str
    index: int
    n_outputs: int


class Identity(nn.Module):
    """In place of a block: gives its first argument, in the form in which the block gave it.

    >>> Identity(0)(1, mask=2), Identity(2)(hidden_states=1)
    (1, (1, None))
    """

    def __init__(self, n_outputs: int) -> None:
        super().__init__()
        self.n_outputs = n_outputs

    @classmethod
    def of(cls, block: nn.Module, n_outputs: int) -> Identity:
        """One that also has the plain attributes of the block, which the code around may ask for."""
        made = cls(n_outputs)
        plain = {k: v for k, v in vars(block).items() if isinstance(v, bool | int | float | str) and k[:1] != "_"}
        vars(made).update(plain)
        return made

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The first argument."""
        first = first_of(args, kwargs)
        return (first, *[None] * (self.n_outputs - 1)) if self.n_outputs else first

    def extra_repr(self) -> str:
        return f"n_outputs={self.n_outputs}"


def find_blocks(model: nn.Module, example: Inputs) -> tuple[list[Block], list[tuple[str, str]]]:
    """The blocks of a model in order of execution, the outermost ones, and what can't be removed, as (fqn, reason).

    Members of a `ModuleList` or `Sequential` with parameters are looked at; one forward on the example shows which of
    them give a tensor of the shape and dtype of their first argument.
    """
    members = {
        f"{holder}.{name}".lstrip("."): (holder, i, child)
        for holder, module in module_lists(model)
        for i, (name, child) in enumerate(module.named_children())
        if next(child.parameters(), None) is not None
    }
    found: dict[str, Block] = {}
    faults: dict[str, str] = {}

    def look(fqn: str, first: Any, out: Any) -> None:
        n_outputs, reason = _form(first, out)
        holder, index, _ = members[fqn]
        if reason:
            faults[fqn] = reason
        elif found.setdefault(fqn, Block(fqn, holder, index, n_outputs)).n_outputs != n_outputs:
            faults[fqn] = "it returns now this many values, now that many"

    watch(model, {fqn: child for fqn, (_, _, child) in members.items()}, [example], look)
    blocks = {fqn: block for fqn, block in found.items() if fqn not in faults}
    faults |= {fqn: "it is not called" for fqn in members if fqn not in found and fqn not in faults}
    outer = [b for b in blocks.values() if not _is_inside(b.fqn, blocks)]
    return outer, [(fqn, reason) for fqn, reason in faults.items() if not _is_inside(fqn, blocks)]


def _form(first: Any, out: Any) -> tuple[int, str]:
    """How many values a block returns (0: a tensor alone), and why it can't be removed, if so."""
    is_plain = type(out) is tuple  # a named one has a form of its own, and `Identity` would lose it
    values, n_outputs = (out, len(out)) if is_plain else ((out,), 0)
    if not isinstance(first, Tensor) or not isinstance(values[0], Tensor):
        return n_outputs, "its first argument or output is no tensor"
    if first.shape != values[0].shape or first.dtype != values[0].dtype:
        return n_outputs, f"it turns {_text(first)} into {_text(values[0])}"
    if tensors_in(values[1:]):
        return n_outputs, "it returns more than one tensor"
    return n_outputs, ""


def _text(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _is_inside(fqn: str, blocks: dict[str, Block]) -> bool:
    return any(fqn.startswith(f"{outer}.") for outer in blocks)
