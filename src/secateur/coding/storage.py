"""A model's tensors as the file holds them: coded weights by their few bytes, everything else as it is."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from secateur.coding.attach import codings_of, tighten_, value_of
from secateur.errors import FileError

SEPARATOR = "::"
"""Between a weight's key and the name of one of its packed tensors; no key of a state dict holds it."""


def pack_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put packed tensors in place of those that coded weights are made of.

    The topmost coding of a weight writes it. Masks below it need no bytes: where the coded weight is zero, it is
    masked. So a weight that is kept but rounded to zero counts as removed from then on; what the model computes stays.

    Args:
        model: with codings or without.
        tensors: its state by key, as `state_dict` names it; values are not copied.
    """
    packed = dict(tensors)
    for key, stack in codings_of(model).items():
        for name in own_keys(model, key):
            packed.pop(name, None)
        packed |= {f"{key}{SEPARATOR}{name}": t for name, t in stack[-1].pack(value_of(model, key)).items()}
    return packed


def unpack_state(model: nn.Module, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Undo `pack_state`, for a model with blank codings, which take on what belongs to them.

    Raises:
        FileError: a coded weight has no packed tensors, or they are not what its coding makes.
    """
    tensors = {key: t for key, t in packed.items() if SEPARATOR not in key}
    parts: dict[str, dict[str, Tensor]] = {}
    for key in packed.keys() - tensors.keys():
        owner, _, name = key.partition(SEPARATOR)
        parts.setdefault(owner, {})[name] = packed[key]
    stacks = codings_of(model)
    if wrong := sorted(stacks.keys() ^ parts.keys()):
        where = "the file" if wrong[0] in stacks else "the model"
        raise FileError(f"'{wrong[0]}' is not coded in {where}. Give the folder with the plan that it was saved with.")
    for key, stack in stacks.items():
        free = f"{_stack_of(key)}.original"
        try:
            weight = stack[-1].unpack(parts[key], tuple(value_of(model, free).shape))
        except FileError as error:
            raise FileError(f"'{key}' can't be unpacked: {error}") from error
        tighten_(stack, weight)
        for name in own_keys(model, key):
            tensors[name] = weight if name == free else value_of(model, name)
    return tensors


def _stack_of(key: str) -> str:
    """The fqn of the module that holds a coded weight: the free one, and its codings."""
    fqn, _, name = key.rpartition(".")
    return f"{fqn}.parametrizations.{name}".lstrip(".")


def own_keys(model: nn.Module, key: str) -> list[str]:
    """State-dict keys of a coded weight: the free one, and what its codings hold."""
    stack = _stack_of(key)
    return [f"{stack}.{inner}" for inner in model.get_submodule(stack).state_dict()]
