"""Repair: find the numbers in the user's own modules that must change with a width, before any weight is touched.

Parameters of probing widths are put into a skeleton of the model on the meta device and its forward is captured again.
The first operator whose shape or argument is not the predicted one names a module, a source line and an axis. A number
there that equals the old size is bound to the axis; a size that the code computes from two others (`C // num_heads`)
becomes an equation between their counts; what nothing explains is frozen, with the line as the reason. Each turn costs
one fake forward, alike modules are repaired together, and each turn binds, ties or freezes something, so it ends.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.capture import ForwardFailed, Inputs, Op, Trace, capture
from secateur.dims.algebra import Dim, Leaf, count, find, leaves
from secateur.errors import SecateurError
from secateur.graph import Graph
from secateur.numbers import Binding, is_spatial, known_bindings, own_numbers, part_at, parts_of
from secateur.surgery import set_number, skeleton
from secateur.verification import compare

_FRACTIONS = (0.5, 0.75, 0.6, 0.9, 0.55, 0.8, 0.7, 0.65)
_MAX_TRIALS = 24


@dataclass(frozen=True, eq=False)
class Slot:
    """A part of an axis of an operator, so that the same place can be found in a module of the same class."""

    is_output: bool
    tensor: int
    axis: int
    path: tuple[int, ...]
    dim: Dim
    actual: int | None = None  # the size that the repaired code gave instead


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


@dataclass
class Repairer:
    """The loop's state: what is bound so far."""

    model: nn.Module
    inputs: Inputs
    graph: Graph
    bindings: list[Binding] = field(default_factory=list)

    def run(self) -> None:
        while (failure := self.attempt(self.bindings)) is not None:
            if not (self._bind(failure) or self._couple(failure)):
                self._freeze(failure)

    def reject(self, counts: Mapping[str, int]) -> bool:
        """Try the counts that an allocation chose. Where they fail, freeze what is to blame and return True."""
        failure = self.attempt(self.bindings, self.graph.leaf_counts(counts))
        if failure is not None:
            self._freeze(failure)
        return failure is not None

    def attempt(self, bindings: Iterable[Binding], counts: Mapping[Leaf, int] | None = None) -> Failure | None:
        """Capture a skeleton of these widths, or of probing ones; None where it is as predicted."""
        counts = probing_counts(self.graph) if counts is None else counts
        if not counts:
            return None
        solution = self.graph.solution
        shapes = {
            value.key: tuple(count(d, counts) for d in solution.axes(value))
            for value in solution.trace.tensors.values()
        }
        tensors = {
            value.key: _meta(shapes[value.key], value.dtype, value.source == "parameter")
            for value in solution.trace.tensors.values()
            if shapes[value.key] != value.shape
        }
        bones = skeleton(self.model, tensors)
        for b in bindings:
            if (n := count(b.dim, counts)) != b.dim.size:
                set_number(bones, b.fqn, b.path, n)
        try:
            return self._judge(capture(bones, self.inputs), None, counts)
        except ForwardFailed as error:
            return self._judge(error.trace, error, counts)

    def _judge(self, after: Trace, error: ForwardFailed | None, counts: Mapping[Leaf, int]) -> Failure | None:
        differences = [d for d in compare(self.graph, after, counts) if not d.is_scale]
        if not differences:
            return None
        ops = self.graph.trace.ops
        op = ops[min(differences[0].op, len(ops) - 1)]
        here = [d for d in differences if d.op == op.index]
        slots = list(self._slots(op, counts))
        wanted = [(d.expected, d.actual) for d in here if d.expected is not None]
        wrong = [
            Slot(s.is_output, s.tensor, s.axis, s.path, s.dim, actual)
            for dim, actual in wanted
            for s in slots
            if s.dim is find(dim)
        ] or [Slot(True, -1, -1, (), dim, actual) for dim, actual in wanted]
        if error is None or error.attempt.index != op.index:
            near = [s for s in slots if not s.is_output]
            return Failure(op, len(wanted) or 1, op.fqn, here[0].text, tuple(wrong), tuple(near))
        wrong = self._blame(op, error, slots)
        text = f"{type(error.attempt.error).__name__} at {error.attempt.location}: {_first_line(error.attempt.error)}"
        return Failure(
            op, max(len(wrong), 1), error.attempt.fqn, text, tuple(wrong), tuple(s for s in slots if not s.is_output)
        )

    def _blame(self, op: Op, error: ForwardFailed, slots: list[Slot]) -> list[Slot]:
        """Output axes that the failing operator should have made, with the sizes that it asked for where it says so."""
        outputs = [s for s in slots if s.is_output]
        asked = re.search(r"shape '(\[[-\d, ]*\])' is invalid", str(error.attempt.error))
        sizes = ast.literal_eval(asked[1]) if asked else []
        if not outputs or len(sizes) != len(self._axes(op, True)[0]):
            return outputs
        counts = probing_counts(self.graph)
        return [
            Slot(True, s.tensor, s.axis, s.path, s.dim, sizes[s.axis])
            for s in outputs
            if sizes[s.axis] not in (-1, count(s.dim, counts))
        ] or outputs

    def _axes(self, op: Op, is_output: bool) -> list[tuple[Dim, ...]]:
        from secateur.capture import Value

        flat = torch.utils._pytree.tree_leaves((op.args, op.kwargs))
        values = op.outputs if is_output else [v for v in flat if isinstance(v, Value)]
        return [self.graph.solution.axes(v) for v in values if v is not None and v.index in self.graph.solution.dims]

    def _slots(self, op: Op, counts: Mapping[Leaf, int]) -> Iterator[Slot]:
        """Axes of an operator whose size changes, outputs first."""
        for is_output in (True, False):
            for i, dims in enumerate(self._axes(op, is_output)):
                for axis, dim in enumerate(dims):
                    if count(dim, counts) != dim.size:
                        yield Slot(is_output, i, axis, (), dim)

    def _bind(self, failure: Failure) -> bool:
        """Bind a number of the module, of one around it, that equals the old size of an axis or of a part of it."""
        tried = 0
        collected: list[list[tuple[Binding, Slot]]] = []
        for scope in self._scopes(failure):
            candidates = self._candidates(failure, scope)
            collected += [[c] for c in candidates]
            together = {c[0].path: c for c in reversed(candidates)}
            options = [[c] for c in candidates] + ([list(together.values())] if len(together) > 1 else [])
            for option in options:
                tried += 1
                if tried > _MAX_TRIALS:
                    return False
                if self._improves(failure, [b for b, _ in option]):
                    for binding, slot in option:
                        self.bindings.append(binding)
                        self.bindings += self._alike(failure.op, binding, slot)
                    return True
        return False

    def _improves(self, failure: Failure, extra: list[Binding]) -> bool:
        after = self.attempt([*self.bindings, *extra])
        return after is None or after.progress > failure.progress

    def _scopes(self, failure: Failure) -> Iterator[str]:
        """The module that failed, the one that the operator was recorded in, then the modules around them."""
        seen: set[str] = set()
        for fqn in (failure.fqn, failure.op.fqn):
            parts = fqn.split(".") if fqn else []
            for n in range(len(parts), -1, -1):
                if (scope := ".".join(parts[:n])) not in seen:
                    seen.add(scope)
                    yield scope

    def _candidates(self, failure: Failure, scope: str) -> list[tuple[Binding, Slot]]:
        counts = probing_counts(self.graph)
        bound = {(b.fqn, b.path) for b in self.bindings}
        found = []
        for path, value in own_numbers(self.model.get_submodule(scope)):
            if (scope, path) in bound or value < 2:
                continue
            for slot in (*failure.wrong, *failure.near):
                for inner, dim in parts_of(slot.dim):
                    if dim.size == value and count(dim, counts) != value:
                        found.append(
                            (Binding(scope, path, dim), Slot(slot.is_output, slot.tensor, slot.axis, inner, dim))
                        )
        unique = {(b.path, id(b.dim)): (b, s) for b, s in reversed(found)}
        return sorted(unique.values(), key=lambda c: is_spatial(c[0].path))

    def _alike(self, op: Op, binding: Binding, slot: Slot) -> Iterator[Binding]:
        """The same number in other modules of the class, bound to the dim at the same place of the same operator."""
        bound = {(b.fqn, b.path) for b in self.bindings}
        for fqn, twin in self._twins(binding.fqn, op):
            dim = self._at(twin, slot)
            number = dict(own_numbers(self.model.get_submodule(fqn))).get(binding.path)
            if dim is not None and number == dim.size and (fqn, binding.path) not in bound:
                yield Binding(fqn, binding.path, dim)

    def _at(self, op: Op, slot: Slot) -> Dim | None:
        axes = self._axes(op, slot.is_output)
        if slot.tensor < 0 or slot.tensor >= len(axes) or slot.axis >= len(axes[slot.tensor]):
            return None
        return part_at(axes[slot.tensor][slot.axis], slot.path)

    def _twins(self, fqn: str, op: Op) -> Iterator[tuple[str, Op]]:
        """Other modules of the same class, each with the operator that stands where `op` stands in this one."""
        modules = dict(self.model.named_modules())
        place = [o.index for o in self._under(fqn)].index(op.index) if op in self._under(fqn) else None
        for other, module in modules.items():
            if place is None or other == fqn or type(module) is not type(modules.get(fqn)):
                continue
            ops = self._under(other)
            if place < len(ops) and ops[place].target is op.target:
                yield other, ops[place]

    def _under(self, fqn: str) -> list[Op]:
        return [o for o in self.graph.trace.ops if not fqn or o.fqn == fqn or o.fqn.startswith(fqn + ".")]

    def _couple(self, failure: Failure) -> bool:
        """Explain an axis d that the code computes as P // Q: then d is fixed and P and Q keep the same fraction."""
        around = [(s, path, dim) for s in (*failure.wrong, *failure.near) for path, dim in parts_of(s.dim)]
        free = [(s, p, d) for s, p, d in around if isinstance(d, Leaf) and d.frozen is None]
        for whole, part, row in itertools.permutations({id(d): (s, p, d) for s, p, d in free}.values(), 3):
            if whole[2].size != part[2].size * row[2].size or row[2].size == 1:
                continue
            places = [
                self._replaced(failure.op, t) for t in zip(*self._triples(failure, whole, part, row), strict=True)
            ]
            undo = self._impose(places, failure)
            after = self.attempt(self.bindings)
            if after is None or after.progress > failure.progress or self._bind_after(after, failure):
                return True
            undo()
        return False

    def _bind_after(self, after: Failure, failure: Failure) -> bool:
        """An equation may need a number bound along before it shows progress."""
        return after.op.index == failure.op.index and self._bind(after)

    def _triples(self, failure: Failure, *parts: tuple[Slot, tuple[int, ...], Dim]) -> list[list[Dim | None]]:
        slots = [Slot(s.is_output, s.tensor, s.axis, path, dim) for s, path, dim in parts]
        twins = [twin for _, twin in self._twins(failure.op.fqn, failure.op)]
        return [[slot.dim, *(self._at(twin, slot) for twin in twins)] for slot in slots]

    def _replaced(self, op: Op, triple: tuple[Dim | None, ...]) -> tuple[Leaf, Leaf, Leaf] | None:
        found = [None if d is None else find(d) for d in triple]
        if all(isinstance(d, Leaf) for d in found):
            whole, part, row = found
            assert isinstance(whole, Leaf)
            assert isinstance(part, Leaf)
            assert isinstance(row, Leaf)
            if whole.size == part.size * row.size:
                return whole, part, row
        return None

    def _impose(self, places: list[tuple[Leaf, Leaf, Leaf] | None], failure: Failure):  # type: ignore[no-untyped-def]
        ties = list(self.graph.solution.ties)
        frozen = []
        for whole, part, row in filter(None, places):
            if row.frozen is None:
                row.frozen = f"computed as {whole.size} // {part.size}: {failure.op.where}"
                frozen.append(row)
            self.graph.solution.ties.append((whole, part, f"{whole.size} // {part.size} is taken: {failure.op.where}"))
        self.graph.refresh()

        def undo() -> None:
            for row in frozen:
                row.frozen = None
            self.graph.solution.ties = ties
            self.graph.refresh()

        return undo

    def _freeze(self, failure: Failure) -> None:
        """Keep what nothing explains: the wrong axes, here and in alike modules, or all that changes around."""
        slots = failure.wrong or failure.near
        reason = f"no number or equation explains it: {failure.text}"
        dims = [s.dim for s in slots]
        for slot in slots:
            dims += [
                d for _, twin in self._twins(failure.op.fqn, failure.op) if (d := self._at(twin, slot)) is not None
            ]
        changed = [leaf for d in dims for leaf in leaves(d) if leaf.frozen is None]
        if not changed:  # nothing near is free: keep everything rather than guess
            changed = [g.leaf for g in self.graph.prunable]
        for leaf in changed:
            leaf.frozen = leaf.frozen or reason
        self.graph.refresh()


def repair(model: nn.Module, inputs: Inputs, graph: Graph) -> tuple[Binding, ...]:
    """Find which numbers of the model's modules follow which dims; freeze or tie in `graph` what can't be followed.

    The model is not changed. Raises SecateurError only where the model itself can't be copied or captured.
    """
    repairer = Repairer(model, inputs, graph, known_bindings(model, graph))
    repairer.run()
    return tuple(repairer.bindings)


def probing_counts(graph: Graph) -> dict[Leaf, int]:
    """Widths to probe with: different fractions, so that no two dims are confused; tied dims keep the same one."""
    fractions = itertools.cycle(_FRACTIONS)
    counts: dict[Leaf, int] = {}
    leaf_of = {g.name: g.leaf for g in graph.prunable}
    for g in graph.prunable:
        if g.leaf in counts:
            continue
        tied = [g.leaf, *(leaf_of[name] for name in g.tied_to)]
        step = math.gcd(*(leaf.size for leaf in tied))
        n = max(1, int(step * next(fractions)))
        counts.update({leaf: leaf.size // step * n for leaf in tied})
    return counts


def _meta(shape: tuple[int, ...], dtype: torch.dtype, is_parameter: bool) -> Tensor:
    data = torch.empty(shape, dtype=dtype, device="meta")
    return nn.Parameter(data, requires_grad=False) if is_parameter else data


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]


__all__ = ["SecateurError", "probing_counts", "repair"]
