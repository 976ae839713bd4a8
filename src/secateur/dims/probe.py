"""Rules found by experiment, for operators that nobody wrote one for. Off unless asked for.

An operator is run on small real tensors. Index p of an input axis is perturbed, and the outputs that move are noted.
Where output index p alone moves, the axes are the same axis; then indices are dropped from them and the operator must
give what is left of its output. Both must hold on all trials. Every other axis is frozen: an experiment can't tell a
sum from a softmax. It is evidence, not proof; `verify` still proves every pruned model on real numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.dims.rule import OP_RULES, Axes, Node
from secateur.errors import UnsupportedOpError
from secateur.graph import trace
from secateur.record import Value
from secateur.tensors import Inputs

_MAX_NUMBERS = 1 << 20  # in all tensors of a call
_N_TRIALS = 3
_N_PLACES = 12  # indices perturbed per axis
_TOLERANCE = 1e-5

Place = tuple[int, int]  # (tensor among the arguments, axis)


@dataclass(frozen=True)
class Derived:
    """What an experiment found about one operator at one call.

    Attributes:
        target: the operator.
        shapes: of its tensor arguments; the rule is for calls of the same ranks, with size-1 axes in the same places.
        outputs: for each output and each of its axes, the input axes that are the same axis; empty where frozen.
    """

    target: Any
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[tuple[Place, ...], ...], ...]

    @property
    def n_equal(self) -> int:
        """Output axes that may shrink with an input axis."""
        return sum(bool(places) for axes in self.outputs for places in axes)

    def __call__(self, op: Node, *args: Any, **kwargs: Any) -> None:
        """The rule, to be registered. Raises UnsupportedOpError for calls of another form."""
        tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Axes)]
        if _form([t.shape for t in tensors]) != _form(self.shapes):
            raise UnsupportedOpError("an experiment was made on other ranks")
        used = {place for axes in self.outputs for places in axes for place in places}
        for i, t in enumerate(tensors):
            for axis, dim in enumerate(t):
                if (i, axis) not in used:
                    op.freeze(dim, "mixes or orders this axis, by experiment")
        for value, axes in zip(op.op.outputs, self.outputs, strict=True):
            dims = []
            for axis, places in enumerate(axes):
                same = [tensors[i][a] for i, a in places]
                for other in same[1:]:
                    op.equate(same[0], other)
                size = value.shape[axis] if value is not None else 1
                dims.append(same[0] if same else op.new(size, "output without a rule"))
            op.out(*dims)

    def __str__(self) -> str:
        found = [
            f"output {o} axis {b} = " + " = ".join(f"input {i} axis {a}" for i, a in places)
            for o, axes in enumerate(self.outputs)
            for b, places in enumerate(axes)
            if places
        ]
        return f"{self.target}, by experiment: {', '.join(found) or 'every axis is frozen'}"


def probe_rule(target: Any, *args: Any, **kwargs: Any) -> Derived:
    """Find by experiment which axes of an operator are the same axis.

    Args:
        target: an overload, such as `torch.ops.mylib.swish.default`.
        args, kwargs: an example call. Its floating tensors are replaced by random ones of the same shapes.
    Returns:
        A rule: `secateur.OP_RULES.register(target)(probe_rule(target, x))`.
    Raises:
        UnsupportedOpError: the operator writes in place, is random, fails on random numbers, or is too large to try.

    >>> print(probe_rule(torch.ops.aten.hardtanh.default, torch.zeros(2, 5)))
    aten.hardtanh.default, by experiment: output 0 axis 0 = input 0 axis 0, output 0 axis 1 = input 0 axis 1
    """
    leaves = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if target._schema.is_mutable or sum(t.numel() for t in leaves) > _MAX_NUMBERS:
        raise UnsupportedOpError(f"{target} writes in place or is too large, so no experiment is made")
    experiment = _Experiment(target, args, kwargs)
    same: dict[tuple[int, int], list[Place]] = {}
    for i, t in enumerate(leaves):
        for axis in range(t.dim()):
            if t.is_floating_point() and t.shape[axis] > 1:
                for output in experiment.moves_with(i, axis):
                    same.setdefault(output, []).append((i, axis))
    shapes = experiment.output_shapes
    kept = experiment.closed(same)
    return Derived(
        target=target,
        shapes=tuple(tuple(t.shape) for t in leaves),
        outputs=tuple(tuple(tuple(kept.get((o, b), ())) for b in range(len(s))) for o, s in enumerate(shapes)),
    )


@contextlib.contextmanager
def probe_rules(model: nn.Module, inputs: Inputs) -> Iterator[tuple[Derived, ...]]:
    """Inside, operators of `model` without a rule have one that was found by experiment, where one was found.

    Plan, apply and verify inside; the plan itself can be replayed anywhere. Yields what was found, to be looked at.
    """
    found: dict[Any, Derived] = {}
    for op in trace(model, inputs).solution.unknown:
        if op.target in found or op.target in OP_RULES:
            continue
        args, kwargs = pytree.tree_map_only(Value, _example, (op.args, op.kwargs))
        with contextlib.suppress(UnsupportedOpError):
            derived = probe_rule(op.target, *args, **kwargs)
            if derived.n_equal:
                found[op.target] = derived
    OP_RULES.update(found)
    try:
        yield tuple(found.values())
    finally:
        for target in found:
            del OP_RULES[target]


class _Experiment:
    """Random calls of one operator, and what becomes of them when an input changes."""

    def __init__(self, target: Any, args: Any, kwargs: Any) -> None:
        self.target = target
        self.leaves, self.spec = pytree.tree_flatten((args, kwargs))
        self.at = [n for n, x in enumerate(self.leaves) if isinstance(x, Tensor)]
        self.generator = torch.Generator().manual_seed(0)
        self.trials = [[self._random(self.leaves[n]) for n in self.at] for _ in range(_N_TRIALS)]
        self.results = [self.run(tensors) for tensors in self.trials]
        if any(not _equal(a, b) for a, b in zip(self.run(self.trials[0]), self.results[0], strict=True)):
            raise UnsupportedOpError(f"{target} gives other numbers each time, so no experiment is made")
        self.output_shapes = [tuple(t.shape) for t in self.results[0]]

    def run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Call the operator on these tensors."""
        leaves = list(self.leaves)
        for n, t in zip(self.at, tensors, strict=True):
            leaves[n] = t.clone()
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        try:
            with torch.no_grad():
                out = self.target(*args, **kwargs)
        except Exception as error:  # the user's kernel: anything may come out of it
            raise UnsupportedOpError(f"{self.target} fails in an experiment: {error}") from error
        return [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]

    def moves_with(self, i: int, axis: int) -> list[tuple[int, int]]:
        """(output, axis) pairs whose index p alone moves when index p of an input's axis does."""
        size = self.trials[0][i].shape[axis]
        candidates = {(o, b) for o, s in enumerate(self.output_shapes) for b, n in enumerate(s) if n == size}
        moved: set[tuple[int, int]] = set()
        for tensors, result in zip(self.trials, self.results, strict=True):
            for p in sorted(set(torch.linspace(0, size - 1, min(size, _N_PLACES)).long().tolist())):
                changed = list(tensors)
                changed[i] = tensors[i].clone()
                part = changed[i].select(axis, p)
                part.copy_(10 * self._random(part))
                outputs = self.run(changed)
                for o, b in list(candidates):
                    where = _where(outputs[o], result[o], b)
                    if where - {p}:
                        candidates.discard((o, b))
                    elif where:
                        moved.add((o, b))
        return sorted(candidates & moved)

    def closed(self, same: Mapping[tuple[int, int], list[Place]]) -> dict[tuple[int, int], list[Place]]:
        """Only those axes from which indices can be dropped: the rest of the output must stay what it was."""
        kept: dict[tuple[int, int], list[Place]] = {}
        for output, places in same.items():
            together = {o for o, others in same.items() if set(others) & set(places)}
            sharers = {place for o in together for place in same[o]}
            size = self.output_shapes[output[0]][output[1]]
            index = torch.arange(size)[torch.rand(size, generator=self.generator) < 0.6]
            index = index if 0 < len(index) < size else torch.arange(size - 1)
            if self._survives(sharers, together, index):
                kept[output] = places
        return kept

    def _survives(self, places: set[Place], outputs: set[tuple[int, int]], index: Tensor) -> bool:
        for tensors, result in zip(self.trials, self.results, strict=True):
            smaller, expected = list(tensors), list(result)
            for i, axis in places:
                smaller[i] = smaller[i].index_select(axis, index)
            for o, b in outputs:
                expected[o] = expected[o].index_select(b, index)
            try:
                found = self.run(smaller)
            except UnsupportedOpError:
                return False
            if not all(_equal(a, b) for a, b in zip(found, expected, strict=True)):
                return False
        return True

    def _random(self, t: Tensor) -> Tensor:
        if not t.is_floating_point():
            return t.clone()
        return torch.randn(t.shape, generator=self.generator, dtype=torch.float32).to(t.dtype)


def _example(value: Value) -> Tensor:
    return torch.zeros(value.shape, dtype=value.dtype)


def _form(shapes: Sequence[Sequence[int]]) -> list[list[bool]]:
    return [[n == 1 for n in shape] for shape in shapes]


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), _TOLERANCE, _TOLERANCE, equal_nan=True)


def _where(a: Tensor, b: Tensor, axis: int) -> set[int]:
    """Indices of an axis at which two tensors differ."""
    if a.shape != b.shape:
        return {-1}
    differ = ~torch.isclose(a.double(), b.double(), rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
    return set(differ.movedim(axis, 0).reshape(a.shape[axis], -1).any(1).nonzero().flatten().tolist())
