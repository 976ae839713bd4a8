"""Groups: each independent dimension with every place where it occurs, under a name that a person understands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from secateur.dims.algebra import Cat, Dim, Leaf, Prod, find, leaves
from secateur.dims.rule import Solution
from secateur.errors import GroupError


class Member(NamedTuple):
    """One place where a group occurs: some indices of one axis of one parameter, buffer or tensor attribute.

    Index i of the group stands at `offset + i * stride + sum_j r_j * s_j` for every r_j < n_j, where
    (n_j, s_j) = `loops[j]`.
    """

    key: str
    axis: int
    role: str = "other"  # "producer" | "reader" | "bias" | "scale" | "shift" | "statistic" | "other"
    size: int = 0
    offset: int = 0
    stride: int = 1
    loops: tuple[tuple[int, int], ...] = ()

    def view(self, tensor: Tensor) -> Tensor:
        """The group's part of a tensor, without a copy: (size, *loop counts, *other axes of the tensor).

        Raises:
            GroupError: the tensor is not the one that the member was found in.

        >>> import torch
        >>> Member("w", axis=1, size=2, offset=1, stride=2).view(torch.arange(10).reshape(2, 5)).tolist()
        [[1, 6], [3, 8]]
        """
        last = self.offset + (self.size - 1) * self.stride + sum((n - 1) * s for n, s in self.loops)
        if self.axis >= tensor.dim() or last >= tensor.shape[self.axis]:
            raise GroupError(
                f"'{self.key}' has shape {tuple(tensor.shape)}, but the group reaches index {last} of axis {self.axis}."
                " Trace the model again: its widths have changed."
            )
        step = tensor.stride(self.axis)
        rest = [i for i in range(tensor.dim()) if i != self.axis]
        return tensor.as_strided(
            (self.size, *(n for n, _ in self.loops), *(tensor.shape[i] for i in rest)),
            (self.stride * step, *(s * step for _, s in self.loops), *(tensor.stride(i) for i in rest)),
            tensor.storage_offset() + self.offset * step,
        )


@dataclass(frozen=True)
class Group:
    """An independent dimension of the network: what must shrink together.

    `kind` is "channels", "features", "heads", "queries" (per key head), "head_dim", "groups" or "embed"; of frozen
    groups also "inputs", "outputs", "vocabulary", "spatial" or "parts" (as q, k, v in one weight).
    `frozen_reason` says why the group keeps its width, and is None where it may shrink. `normalised_by` names operators
    that normalise across the group, so that dropping some of it changes what the rest becomes.
    """

    name: str
    kind: str
    size: int
    members: tuple[Member, ...]
    frozen_reason: str | None = None
    normalised_by: tuple[str, ...] = ()
    tied_to: tuple[str, ...] = ()  # names of the groups that must keep the same fraction
    leaf: Leaf = field(default_factory=lambda: Leaf(0), compare=False, repr=False)


Occurrence = tuple[Leaf, int, int, tuple[tuple[int, int], ...]]


def occurrences(dim: Dim) -> list[Occurrence]:
    """Every occurrence of every leaf in a dim, as (leaf, offset, stride, loops) (see `Member`).

    >>> [(leaf.size, *rest) for leaf, *rest in occurrences(Prod((Leaf(3), Leaf(4))))]
    [(3, 0, 4, ((4, 1),)), (4, 0, 1, ((3, 4),))]
    """
    dim = find(dim)
    if isinstance(dim, Leaf):
        return [(dim, 0, 1, ())]
    found: list[Occurrence] = []
    if isinstance(dim, Cat):
        start = 0
        for part in dim.parts:
            if isinstance(part, Leaf):
                found.append((part, start, 1, ()))
            else:
                found += [(x, start + offset, stride, loops) for x, offset, stride, loops in occurrences(part)]
            start += part.size
    elif isinstance(dim, Prod) and dim.factors:
        strides = [1]
        for f in dim.factors[:0:-1]:
            strides.insert(0, strides[0] * f.size)
        for i, (f, step) in enumerate(zip(dim.factors, strides, strict=True)):
            others = tuple((g.size, s) for j, (g, s) in enumerate(zip(dim.factors, strides, strict=True)) if j != i)
            for leaf, offset, stride, loops in occurrences(f):
                found.append((leaf, offset * step, stride * step, (*((n, s * step) for n, s in loops), *others)))
    return found


def build_groups(solution: Solution) -> list[Group]:
    """One group for each leaf that occurs in a parameter, in the order of the network's parameters.

    Kernel axes are left out: they belong to no group of units; so are leaves of buffers alone (masks, tables).
    """
    members: dict[Leaf, list[Member]] = {}
    for value in solution.trace.tensors.values():
        for axis, dim in enumerate(solution.axes(value)):
            role = solution.roles.get((value.key, axis), "other")
            for leaf, offset, stride, loops in occurrences(dim):
                place = Member(value.key, axis, role, leaf.size, offset, stride, loops)
                members.setdefault(leaf, []).append(place)
    parameters = {v.key for v in solution.trace.tensors.values() if v.source == "parameter"}
    listed = [
        leaf
        for leaf, places in members.items()
        if any(m.key in parameters for m in places) and not (leaf.frozen or "").startswith("kernel")
    ]
    normalised = _normalisers(solution)
    names = _names(listed, members, solution)
    ties = _tied(solution)
    return [
        Group(
            name=names[leaf],
            kind=_kind(leaf, members[leaf], solution),
            size=leaf.size,
            members=tuple(members[leaf]),
            frozen_reason=leaf.frozen,
            normalised_by=tuple(normalised.get(leaf, ())),
            tied_to=tuple(names[other] for other in ties.get(leaf, ()) if other in names),
            leaf=leaf,
        )
        for leaf in listed
    ]


def _normalisers(solution: Solution) -> dict[Leaf, list[str]]:
    """Operators that normalise across each leaf, in order."""
    across = [(entry.op, dim) for entry in solution.renormalised for dim in entry.dims]
    across += [(read.op, read.dim) for read in solution.reads if read.how != "zero"]
    found: dict[Leaf, dict[str, None]] = {}
    for op, dim in sorted(across, key=lambda pair: pair[0]):
        for leaf in leaves(dim):
            found.setdefault(leaf, {})[solution.trace.ops[op].where] = None
    return {leaf: list(wheres) for leaf, wheres in found.items()}


def _tied(solution: Solution) -> dict[Leaf, list[Leaf]]:
    """Connected components of the ties, each leaf with the others of its component."""
    component: dict[Leaf, list[Leaf]] = {}
    for a, b, _ in solution.ties:
        first, second = (find(d) for d in (a, b))
        assert isinstance(first, Leaf)
        assert isinstance(second, Leaf)
        one, two = component.setdefault(first, [first]), component.setdefault(second, [second])
        if one is not two:
            one.extend(two)
            for leaf in two:
                component[leaf] = one
    return {leaf: [other for other in whole if other is not leaf] for leaf, whole in component.items()}


def _defining(places: list[Member]) -> Member:
    """The member that a person would name the group by: the first weight that produces it, else its first place."""
    return next((m for m in places if m.role == "producer"), places[0])


_PARTS = ("indexed by a number", "unbound")  # how reasons of leaves that stand for q, k, v start
_FROZEN_KINDS = {  # start of the reason -> kind
    "vocabulary": "vocabulary",
    "spatial": "spatial",
    "model input": "inputs",
    "model output": "outputs",
    **dict.fromkeys(_PARTS, "parts"),
}


def _kind(leaf: Leaf, places: list[Member], solution: Solution) -> str:
    for start, kind in _FROZEN_KINDS.items():
        if (leaf.frozen or "").startswith(start):
            return kind
    place = _defining(places)
    value = solution.trace.tensors[place.key]
    dim = solution.axes(value)[place.axis]
    if isinstance(dim, Cat):
        dim = next(p for p in dim.parts if any(leaf is x for x in leaves(p)))
    if len(value.shape) >= 3 and place.role == "producer":
        return "groups" if isinstance(dim, Prod) and place.stride > 1 else "channels"
    if isinstance(dim, Prod):
        units = [x for x in leaves(dim) if not (x.frozen or "").startswith(_PARTS)]
        is_inner = leaf in units[1:]  # of (key head, query, width): grouped queries
        return "head_dim" if place.stride == 1 else "queries" if is_inner else "heads"
    produced_by = sum(m.role == "producer" for m in places)
    return "embed" if produced_by > 2 else "features"  # a gated unit is produced by two


def _names(listed: list[Leaf], members: dict[Leaf, list[Member]], solution: Solution) -> dict[Leaf, str]:
    """`layer3.0.conv1 channels`, `blocks.5.attn.qkv heads`; a number is added where a name is taken."""
    names: dict[Leaf, str] = {}
    taken: dict[str, int] = {}
    for leaf in listed:
        owner = _defining(members[leaf]).key.removesuffix("weight").removesuffix("bias").rstrip("._")
        name = f"{owner or 'model'} {_kind(leaf, members[leaf], solution)}"
        taken[name] = taken.get(name, 0) + 1
        names[leaf] = name if taken[name] == 1 else f"{name} {taken[name]}"
    return names
