"""Repair: find the numbers in the user's own modules that must change with a width, before any weight is touched.

Parameters of probing widths are put into a skeleton of the model on fake tensors and its forward is captured again.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from secateur.capture import capture
from secateur.dims.algebra import Dim, Leaf, count, find, leaves, linear_leaves
from secateur.graph import Graph
from secateur.numbers import Binding, is_spatial, known_bindings, own_numbers, part_at, parts_of
from secateur.record import ForwardFailed, Op, Trace, Value
from secateur.surgery import set_number
from secateur.tensors import Inputs, fake_copy
from secateur.verification import compare

_FRACTIONS = (0.5, 0.75, 0.6, 0.9, 0.55, 0.8, 0.7, 0.65)
_MAX_TRIALS = 24


@dataclass(frozen=True, eq=False)
class Slot:
    """A part of an axis of an operator, so that the same place can be found in a module of the same class."""

    op: Op
    is_output: bool
    tensor: int
    axis: int
    dim: Dim
    path: tuple[int, ...] = ()  # which part of the axis (see `parts_of`)


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
    inside: dict[str, dict[int, int]] = field(default_factory=dict)  # see `_under`

    def run(self) -> None:
        while (failure := self.attempt(self.bindings)) is not None:
            if not (self._bind(failure) or self._unite(failure) or self._couple(failure)):
                self._freeze(failure)

    def reject(self, counts: Mapping[str, int]) -> bool:
        """Try the counts that an allocation chose. Where they fail, freeze what is to blame and return True."""
        if too_few := self._below_minimum(counts):
            for leaf, least in too_few.items():
                leaf.frozen = f"an operator has no value on fewer than {least} of its {leaf.size} indices"
            self.graph.refresh()
            return True
        failure = self.attempt(self.bindings, self.graph.leaf_counts(counts))
        if failure is not None:
            self._freeze(failure)
        return failure is not None

    def _below_minimum(self, counts: Mapping[str, int]) -> dict[Leaf, int]:
        least: dict[Leaf, int] = {}
        for leaf, n in self.graph.solution.minimum.items():
            for now in leaves(leaf):
                least[now] = max(n, least.get(now, 1))
        return {leaf: least[leaf] for leaf, n in self.graph.leaf_counts(counts).items() if n < least.get(leaf, 1)}

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
        changed = {
            value.key: shapes[value.key]
            for value in solution.trace.tensors.values()
            if shapes[value.key] != value.shape
        }
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        bones = fake_copy(self.model, mode, changed)
        for b in bindings:
            if (n := count(b.dim, counts)) != b.dim.size:
                set_number(bones, b.fqn, b.path, n)
        try:
            return self._judge(capture(bones, self.inputs, fake_mode=mode), None, counts)
        except ForwardFailed as error:
            return self._judge(error.trace, error, counts)

    def _judge(self, after: Trace, error: ForwardFailed | None, counts: Mapping[Leaf, int]) -> Failure | None:
        differences = [d for d in compare(self.graph, after, counts) if not d.is_scale]
        if not differences:
            return None
        op = self.graph.trace.ops[differences[0].op]
        here = [d for d in differences if d.op == op.index]
        slots = list(self._slots(op, counts))
        near = tuple(s for s in slots if not s.is_output)
        if error is not None and here[0].is_end:
            wrong = self._blame(error, [s for s in slots if s.is_output], counts)
            cause = error.attempt
            text = f"{type(cause.error).__name__} at {cause.location}: {_first_line(cause.error)}"
            return Failure(op, len(wrong) or 1, cause.fqn, text, tuple(wrong), near)
        wanted = {id(find(d.expected)) for d in here if d.expected is not None}
        wrong = [s for s in slots if id(s.dim) in wanted]
        wrong += [
            Slot(op, True, -1, -1, find(d.expected)) for d in here if d.expected is not None and d.position is not None
        ]
        return Failure(op, len(here), op.fqn, here[0].text, tuple(wrong), near)

    def _blame(self, error: ForwardFailed, outputs: list[Slot], counts: Mapping[Leaf, int]) -> list[Slot]:
        """Of the axes that the failing operator should have made, those for which it asked for another size."""
        asked = re.search(r"shape '(\[[-\d, ]*\])' is invalid", str(error.attempt.error))
        sizes = ast.literal_eval(asked[1]) if asked else []
        if any(s.axis >= len(sizes) for s in outputs):
            return outputs
        return [s for s in outputs if sizes[s.axis] not in (-1, count(s.dim, counts))] or outputs

    def _axes(self, op: Op, is_output: bool) -> list[tuple[Dim, ...]]:
        flat = pytree.tree_leaves((op.args, op.kwargs))
        values = op.outputs if is_output else [v for v in flat if isinstance(v, Value)]
        return [self.graph.solution.axes(v) for v in values if v is not None and v.index in self.graph.solution.dims]

    def _slots(self, op: Op, counts: Mapping[Leaf, int]) -> Iterator[Slot]:
        """Axes of an operator whose size changes, outputs first."""
        for is_output in (True, False):
            for i, dims in enumerate(self._axes(op, is_output)):
                for axis, dim in enumerate(dims):
                    if count(dim, counts) != dim.size:
                        yield Slot(op, is_output, i, axis, dim)

    def _bind(self, failure: Failure, beyond: tuple[int, int] | None = None) -> bool:
        """Bind a number of the module, of one around it, that equals the old size of an axis or of a part of it."""
        tried = 0
        for scope in self._scopes(failure):
            candidates = self._candidates(failure, scope)
            together = {c[0].path: c for c in reversed(candidates)}
            options = [[c] for c in candidates] + ([list(together.values())] if len(together) > 1 else [])
            for option in options:
                tried += 1
                if tried > _MAX_TRIALS:
                    return False
                if self._improves(beyond or failure.progress, [b for b, _ in option]):
                    for binding, slot in option:
                        self.bindings += [binding, *self._alike(binding, slot)]
                    return True
        return False

    def _improves(self, progress: tuple[int, int], extra: list[Binding]) -> bool:
        after = self.attempt([*self.bindings, *extra])
        return after is None or after.progress > progress

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
        found: dict[tuple[str, int], tuple[Binding, Slot]] = {}
        for path, value in own_numbers(self.model.get_submodule(scope)):
            if (scope, path) in bound or value < 2:
                continue
            for slot in _with_parts((*failure.wrong, *failure.near)):
                if slot.dim.size == value and count(slot.dim, counts) != value:
                    found.setdefault((path, id(slot.dim)), (Binding(scope, path, slot.dim), slot))
        return sorted(found.values(), key=lambda c: is_spatial(c[0].path))

    def _alike(self, binding: Binding, slot: Slot) -> Iterator[Binding]:
        """The same number in other modules of the class, bound to the dim at the same place of the same operator."""
        bound = {(b.fqn, b.path) for b in self.bindings}
        for fqn in self._twins(binding.fqn):
            dim = self._at(binding.fqn, fqn, slot)
            number = dict(own_numbers(self.model.get_submodule(fqn))).get(binding.path)
            if dim is not None and number == dim.size and (fqn, binding.path) not in bound:
                yield Binding(fqn, binding.path, dim)

    def _twins(self, fqn: str) -> list[str]:
        """Other modules of the same class."""
        modules = dict(self.model.named_modules())
        return [other for other, m in modules.items() if other != fqn and type(m) is type(modules[fqn])]

    def _at(self, fqn: str, twin: str, slot: Slot) -> Dim | None:
        """The dim in module `twin` that stands where `slot` stands in module `fqn`."""
        here, there = self._under(fqn), self._under(twin)
        place = here.get(slot.op.index)
        if place is None or slot.tensor < 0 or place >= len(there):
            return None
        op = self.graph.trace.ops[list(there)[place]]
        axes = self._axes(op, slot.is_output)
        if op.target is not slot.op.target or slot.tensor >= len(axes) or slot.axis >= len(axes[slot.tensor]):
            return None
        return part_at(axes[slot.tensor][slot.axis], slot.path)

    def _under(self, fqn: str) -> dict[int, int]:
        """Operators that ran inside a module: index in the record -> place in the module."""
        if fqn not in self.inside:
            ops = [o.index for o in self.graph.trace.ops if not fqn or o.fqn == fqn or o.fqn.startswith(fqn + ".")]
            self.inside[fqn] = {index: place for place, index in enumerate(ops)}
        return self.inside[fqn]

    def _unite(self, failure: Failure) -> bool:
        """A number that is bound to one dim stands for another one too: then both keep equal counts."""
        tried = 0
        for scope in self._scopes(failure):
            bound = {b.path: b.dim for b in self.bindings if b.fqn == scope}
            for slot in _with_parts((*failure.wrong, *failure.near)):
                for path, dim in bound.items():
                    if not _may_tie(dim, slot.dim) or tried >= _MAX_TRIALS:
                        continue
                    tried += 1
                    undo = self._impose([(dim, slot.dim, None), *self._alike_pairs(scope, path, slot)], failure)
                    after = self.attempt(self.bindings)
                    if after is None or after.progress > failure.progress:
                        return True
                    undo()
        return False

    def _alike_pairs(self, scope: str, path: str, slot: Slot) -> Iterator[tuple[Dim, Dim, None]]:
        for twin in self._twins(scope):
            dim = next((b.dim for b in self.bindings if b.fqn == twin and b.path == path), None)
            other = self._at(scope, twin, slot)
            if dim is not None and other is not None and _may_tie(dim, other):
                yield dim, other, None

    def _couple(self, failure: Failure) -> bool:
        """Explain a size that the code computes as P // Q: it is fixed then, and P and Q keep the same fraction."""
        free = {id(s.dim): s for s in reversed(list(self._free_slots(failure)))}
        suspects = {id(leaf) for s in (*failure.wrong, *failure.near) for leaf in leaves(s.dim)}
        for whole, part, row in itertools.permutations(reversed(free.values()), 3):
            if whole.dim.size != part.dim.size * row.dim.size or not {id(part.dim), id(row.dim)} & suspects:
                continue
            undo = self._impose(
                [(whole.dim, part.dim, row.dim), *self._alike_triples(failure, whole, part, row)], failure
            )
            after = self.attempt(self.bindings)
            if after is None or after.progress > failure.progress or self._bind_along(after, failure):
                return True
            undo()
        return False

    def _free_slots(self, failure: Failure) -> Iterator[Slot]:
        """Leaves that may shrink, around the failure and in its module, nearest first."""
        counts = probing_counts(self.graph)
        places = [*failure.wrong, *failure.near]
        for index in self._under(failure.fqn):
            places += self._slots(self.graph.trace.ops[index], counts)
        yield from (s for s in _with_parts(places) if isinstance(s.dim, Leaf) and s.dim.frozen is None)

    def _bind_along(self, after: Failure, failure: Failure) -> bool:
        """An equation may need a number bound with it before it shows progress."""
        return after.op.index <= failure.op.index and self._bind(after, beyond=failure.progress)

    def _alike_triples(self, failure: Failure, *slots: Slot) -> Iterator[tuple[Dim, Dim, Dim | None]]:
        for twin in self._twins(failure.fqn):
            whole, part, row = (self._at(failure.fqn, twin, s) for s in slots)
            if whole is not None and part is not None and row is not None:
                yield whole, part, row

    def _impose(self, triples: list[tuple[Dim, Dim, Dim | None]], failure: Failure) -> Callable[[], None]:
        """Freeze the row, if there is one, and tie the two others of every triple; return what takes that back."""
        ties = list(self.graph.solution.ties)
        frozen = []
        for whole, part, row in triples:
            if not _may_tie(whole, part, row):
                continue
            if isinstance(row, Leaf) and row.frozen is None:
                row.frozen = f"computed as {whole.size} // {part.size}: {failure.op.where}"
                frozen.append(row)
            one, *others = dict.fromkeys([*(linear_leaves(whole) or ()), *(linear_leaves(part) or ())])
            why = f"the code keeps their ratio: {failure.op.where}"
            self.graph.solution.ties += [(one, other, why) for other in others]
        self.graph.refresh()

        def undo() -> None:
            for row in frozen:
                row.frozen = None
            self.graph.solution.ties = ties
            self.graph.refresh()

        return undo

    def _freeze(self, failure: Failure) -> None:
        """Keep what nothing explains: the wrong axes, or what changes near them, here and in alike modules."""
        reason = f"no number or equation explains it: {failure.text}"
        for slots in self._to_blame(failure):
            dims = [s.dim for s in slots]
            for twin in self._twins(failure.op.fqn):
                dims += [d for s in slots if (d := self._at(failure.op.fqn, twin, s)) is not None]
            if changed := [leaf for d in dims for leaf in leaves(d) if leaf.frozen is None]:
                break
        for leaf in changed:
            leaf.frozen = reason
        self.graph.refresh()

    def _to_blame(self, failure: Failure) -> Iterator[list[Slot]]:
        """Wider and wider circles around a failure; the last one is the whole network."""
        counts = probing_counts(self.graph)
        yield list(failure.wrong)
        yield list(failure.near)
        for scope in self._scopes(failure):
            yield [s for index in self._under(scope) for s in self._slots(self.graph.trace.ops[index], counts)]
        yield [Slot(failure.op, True, -1, -1, g.leaf) for g in self.graph.prunable]


def _may_tie(whole: Dim, part: Dim, row: Dim | None = None) -> bool:
    """True where |whole| = |part| * |row|, and it stays so while all their leaves keep the same fraction."""
    one, two = linear_leaves(whole), linear_leaves(part)
    if not one or not two or set(one) == set(two):
        return False
    return whole.size == part.size * (1 if row is None else row.size) and (row is None or isinstance(find(row), Leaf))


def _with_parts(slots: Iterable[Slot]) -> Iterator[Slot]:
    """Each slot, and each part of its dim as a slot."""
    for slot in slots:
        for path, dim in parts_of(slot.dim):
            yield replace(slot, path=path, dim=dim)


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


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
