"""Numbers in modules that stand for widths: `in_features`, `groups`, `num_heads`, `sizes[1]`, `config.hidden_size`.

A `Binding` says which dim such a number counts, so that it can follow when the dim shrinks. For torch's own layers the
bindings are known; for the user's modules the repair loop finds them among the candidates listed here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.dims.algebra import Cat, Dim, Leaf, Prod, count, find
from secateur.graph import Graph
from secateur.tensors import HELD_BY_ALL, modules_of

aten = torch.ops.aten

_BY_TENSOR: tuple[tuple[type[nn.Module], dict[str, tuple[str, int]]], ...] = (
    (nn.Linear, {"in_features": ("weight", 1), "out_features": ("weight", 0)}),
    (nn.Embedding, {"num_embeddings": ("weight", 0), "embedding_dim": ("weight", 1)}),
    (_ConvTransposeNd, {"in_channels": ("weight", 0), "out_channels": ("weight", 1)}),
    (_ConvNd, {"in_channels": ("weight", 1), "out_channels": ("weight", 0)}),
    (_NormBase, {"num_features": ("weight", 0)}),
    (_NormBase, {"num_features": ("running_mean", 0)}),
    (nn.LayerNorm, {"normalized_shape[0]": ("weight", 0), "normalized_shape[1]": ("weight", 1)}),
    (nn.RMSNorm, {"normalized_shape[0]": ("weight", 0), "normalized_shape[1]": ("weight", 1)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.PReLU, {"num_parameters": ("weight", 0)}),
    (nn.RNNBase, {"input_size": ("weight_ih_l0", 1), "hidden_size": ("weight_hh_l0", 1)}),
    (nn.RNNBase, {"proj_size": ("weight_hr_l0", 0)}),
    (nn.RNNCellBase, {"input_size": ("weight_ih", 1), "hidden_size": ("weight_hh", 1)}),
    (nn.Bilinear, {"in1_features": ("weight", 1), "in2_features": ("weight", 2), "out_features": ("weight", 0)}),
)
_BY_ARGUMENT: dict[Any, tuple[tuple[str, int], ...]] = {  # operator -> numbers of its module, by argument
    aten.convolution.default: (("groups", 8),),
    aten.native_group_norm.default: (("num_channels", 4), ("num_groups", 6)),
}
_SPATIAL = ("kernel", "stride", "pad", "dilation", "shift", "window", "patch", "image", "img", "seq", "position")


@dataclass(frozen=True, eq=False)
class Binding:
    """`path` of the submodule `fqn` counts a dim."""

    fqn: str
    path: str
    dim: Dim


def known_bindings(model: nn.Module, graph: Graph) -> list[Binding]:
    """Bindings of torch's own layers, where the number is what the layer's tensors say."""
    found: dict[tuple[str, str], Binding] = {}

    def bind(fqn: str, path: str, dim: Dim) -> None:
        if fqn not in numbers_of:
            numbers_of[fqn] = dict(own_numbers(modules[fqn]))
        value = numbers_of[fqn].get(path)
        if value == dim.size and (fqn, path) not in found:
            found[fqn, path] = Binding(fqn, path, dim)

    modules = dict(modules_of(model))
    numbers_of: dict[str, dict[str, int]] = {}
    for op in graph.trace.ops:
        for path, position in _BY_ARGUMENT.get(op.target, ()):
            if (dim := graph.solution.expected.get((op.index, position))) is not None:
                bind(op.fqn, path, dim)
        if op.target is aten.convolution.default and isinstance(modules[op.fqn], _ConvNd):
            assert op.outputs[0] is not None
            bind(op.fqn, "in_channels", graph.solution.axes(op.args[0])[1])
            bind(op.fqn, "out_channels", graph.solution.axes(op.outputs[0])[1])
    for fqn, module in modules.items():
        for kind, numbers in _BY_TENSOR:
            if isinstance(module, kind):
                for path, (name, axis) in numbers.items():
                    key = f"{fqn}.{name}" if fqn else name
                    value = graph.trace.tensors.get(graph.trace.tied.get(key, key))
                    if value is not None and axis < len(value.shape):
                        bind(fqn, path, graph.solution.axes(value)[axis])
    return list(found.values())


def unread_numbers(
    model: nn.Module, graph: Graph, bindings: Iterable[Binding], counts: Mapping[Leaf, int]
) -> list[str]:
    """Paths of numbers that equal the old width of a shrinking tensor of their module, and that no operator read.

    They may stand for that width or for something else; nothing that was recorded tells.
    """
    bound = {(b.fqn, b.path) for b in bindings}
    old: dict[str, set[int]] = {}
    for value in graph.trace.tensors.values():
        shrunk = {d.size for d in graph.solution.axes(value) if count(d, counts) != d.size}
        old.setdefault(value.key.rpartition(".")[0], set()).update(shrunk)
    found = [
        path
        for fqn, sizes in old.items()
        for path, number in (own_numbers(model.get_submodule(fqn)) if sizes else ())
        if number in sizes and number > 1 and (fqn, path) not in bound and not is_spatial(path)
    ]
    return list(dict.fromkeys(found))


def own_numbers(module: nn.Module) -> Iterator[tuple[str, int]]:
    """Every whole number that a module holds: its own, those in its tuples and lists, and in objects like a config."""
    for name, value in vars(module).items():
        if name in HELD_BY_ALL or isinstance(value, (nn.Module, Tensor)):
            continue
        yield from _numbers(name, value)
        if hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
            for inner, number in vars(value).items():
                yield from _numbers(f"{name}.{inner}", number)


def _numbers(path: str, value: Any) -> Iterator[tuple[str, int]]:
    if isinstance(value, int) and not isinstance(value, bool):
        yield path, value
    elif isinstance(value, tuple | list) and len(value) <= 16:
        for i, item in enumerate(value):
            if isinstance(item, int) and not isinstance(item, bool):
                yield f"{path}[{i}]", item


def is_spatial(path: str) -> bool:
    """True for names that count pixels or positions (`kernel_size`, `shift_size`), which are tried last."""
    return any(word in path.lower() for word in _SPATIAL)


def parts_of(dim: Dim) -> Iterator[tuple[tuple[int, ...], Dim]]:
    """A dim, then everything it is made of, each with its path of positions.

    >>> from secateur.dims.algebra import Leaf, prod
    >>> list(parts_of(prod([Leaf(2), Leaf(3)])))
    [((), Prod[2, 3]), ((0,), 2), ((1,), 3)]
    """
    dim = find(dim)
    yield (), dim
    children = dim.parts if isinstance(dim, Cat) else dim.factors if isinstance(dim, Prod) else ()
    for i, child in enumerate(children):
        for path, part in parts_of(child):
            yield (i, *path), part


def part_at(dim: Dim, path: tuple[int, ...]) -> Dim | None:
    """The part of a dim at a path, or None where it is not made so."""
    dim = find(dim)
    for i in path:
        children = dim.parts if isinstance(dim, Cat) else dim.factors if isinstance(dim, Prod) else ()
        if i >= len(children):
            return None
        dim = find(children[i])
    return dim
