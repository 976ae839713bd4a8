"""Numbers of a `config.json` that may count widths, and the widths of a traced network that they may count."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from secateur.dims.algebra import Cat, Dim, Prod, find, leaves
from secateur.dims.groups import Group
from secateur.graph import Graph
from secateur.record import Op, Trace, Value

Field = tuple[str | int, ...]
"""Path of a number in config.json; the last step may be a place in a list: ("text_config", "hidden_sizes", 2)."""

PER_LAYER = "per_layer_config"
"""Transformers' key for what is otherwise in some layers: {layer: {name: value}}."""

_NUMBER = r"(?<=\.)\d+(?=[. ])"  # of a layer, in a group's name
_OPTIONAL = ("n_inner", "head_dim", "num_key_value_heads")  # null stands for a number computed from others
_KINDS = (  # words in a field's name -> kind of group that it usually counts; only an order of trials
    (("head_dim", "d_kv"), "head_dim"),
    (("head",), "heads"),
    (("intermediate", "ffn", "d_ff", "inner", "hidden_dim"), "features"),
    (("hidden_size", "n_embd", "d_model", "embed", "dim"), "embed"),
    (("expert",), "heads"),
)
_NO_WIDTH = ("token_id", "vocab", "layers", "position", "per_tok", "image", "patch", "window", "version")


@dataclass(frozen=True)
class Width:
    """A product of roles' widths, and a constant: 64 × heads."""

    roles: tuple[str, ...]
    constant: int = 1


def roles_of(graph: Graph) -> dict[str, list[Group]]:
    """Groups that may shrink, alike ones of different layers together."""
    roles: dict[str, list[Group]] = {}
    for g in graph.prunable:
        roles.setdefault(f"{without_numbers(g.name)} × {g.size}", []).append(g)
    return roles


def without_numbers(name: str) -> str:
    """A group's name without the number of its layer.

    >>> without_numbers("model.layers.12.mlp.up_proj features")
    'model.layers.*.mlp.up_proj features'
    """
    return re.sub(_NUMBER, "*", name)


def layer_of(name: str) -> int | None:
    """The number of a group's layer, the first in its name; None where it has none.

    >>> layer_of("model.layers.12.mlp.up_proj features")
    12
    """
    found = re.search(_NUMBER, name)
    return None if found is None else int(found[0])


def spelled_out(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` with what its class fills in; a list by layer in place of the number that it is made from."""
    return _filled(data, cls.config_class.from_dict(copy.deepcopy(dict(data))).to_dict())


def _filled(data: Mapping[str, Any], whole: Mapping[str, Any]) -> dict[str, Any]:
    found = {**whole, **data}
    for name in data.keys() & whole.keys():
        given, made = data[name], whole[name]
        if isinstance(given, Mapping) and isinstance(made, Mapping) and name != PER_LAYER:
            found[name] = _filled(given, made)
        elif type(given) is int and isinstance(made, list):
            found[name] = made
    return found


def put_number(data: dict[str, Any], spelled: Mapping[str, Any], path: Field, number: int) -> None:
    """Write one number into a `config.json`; a list, or a part, that isn't there is taken from the spelled out one."""
    holder: Any = data
    there: Any = spelled
    for name in path[:-1]:
        there = there.get(name, {})
        if not isinstance(holder.get(name), type(there)):
            holder[name] = copy.deepcopy(there) if isinstance(there, list) or name == PER_LAYER else {}
        holder = holder[name]
    holder[path[-1]] = number


def field_options(graph: Graph, spelled: Mapping[str, Any]) -> dict[Field, list[Width]]:
    """What each number of a config may count: products of roles of its size, likeliest first.

    Args:
        spelled: the config, as `spelled_out` gives it.
    """
    roles = roles_of(graph)
    role_of_leaf = {id(g.leaf): role for role, groups in roles.items() for g in groups}
    widths: dict[int, dict[Width, None]] = {}
    for value in graph.trace.tensors.values():
        for dim in graph.solution.axes(value):
            for part in _runs(dim):
                free = [leaf for leaf in leaves(part) if id(leaf) in role_of_leaf]
                constant, rest = divmod(part.size, math.prod(leaf.size for leaf in free))
                if free and not rest and not isinstance(part, Cat):
                    found = Width(tuple(role_of_leaf[id(leaf)] for leaf in free), constant)
                    widths.setdefault(part.size, {}).setdefault(found)
    every = dict.fromkeys(width for found in widths.values() for width in found)
    options = {}
    for path, number in _numbers(spelled):
        kind = kind_of(path)
        near = list(widths.get(number, ()) if number is not None else every)
        near.sort(key=lambda w: (roles[w.roles[0]][0].kind != kind, len(w.roles), w.constant))
        if number is None:
            near = [w for w in near if len(w.roles) == 1 and roles[w.roles[0]][0].kind == kind]
        if near:
            options[path] = near
    return options


def kind_of(path: Field) -> str | None:
    """The kind of group that a field's name speaks of; None where it speaks of no width."""
    name = next(str(step) for step in reversed(path) if isinstance(step, str))
    return next((kind for words, kind in _KINDS if any(word in name for word in words)), None)


def compare_programs(mine: Trace, theirs: Trace) -> str | None:
    """The first operator that two records of one program do not share, with its shapes and numbers."""
    for a, b in zip(mine.essential, theirs.essential, strict=False):
        if _signature(a) != _signature(b):
            return f"{a.where}: {_signature(b)[1:]} there, {_signature(a)[1:]} planned"
    n, m = len(mine.essential), len(theirs.essential)
    return None if n == m else f"{m} operators there, {n} planned"


def _numbers(data: Mapping[str, Any], prefix: Field = ()) -> Iterator[tuple[Field, int | None]]:
    for name, value in data.items():
        if any(word in name for word in _NO_WIDTH):
            continue
        if isinstance(value, Mapping) and (name.endswith("config") or prefix[-1:] == (PER_LAYER,)):
            yield from _numbers(value, (*prefix, name))
        elif isinstance(value, list):
            yield from (((*prefix, name, i), n) for i, n in enumerate(value) if type(n) is int and n > 1)
        elif (value is None and name in _OPTIONAL) or (type(value) is int and value > 1):
            yield (*prefix, name), value


def _runs(dim: Dim) -> Iterator[Dim]:
    """A dim, its parts, and products of neighbouring factors."""
    dim = find(dim)
    yield dim
    if isinstance(dim, Cat):
        for part in dim.parts:
            yield from _runs(part)
    elif isinstance(dim, Prod):
        n = len(dim.factors)
        for i in range(n):
            for j in range(i + 1, min(n, i + n - 1) + 1):
                yield find(Prod(dim.factors[i:j]) if j - i > 1 else dim.factors[i])


def _signature(op: Op) -> tuple[Any, ...]:
    def plain(part: Any) -> Any:
        if isinstance(part, Value):
            return part.shape
        return tuple(map(plain, part)) if isinstance(part, list | tuple) else part

    shapes = tuple(None if v is None else v.shape for v in op.outputs)
    numbers = tuple(plain(a) for a in (*op.args, *op.kwargs.values()) if not isinstance(a, torch.device))
    return str(op.target), shapes, numbers
