"""Repair: find the numbers in the user's own modules that must change with a width, before any weight is touched.

Parameters of probing widths are put into a skeleton of the model, without memory, and its forward is captured again.
The first operator whose shape or argument is not the predicted one names a module, a source line and an axis. A number
there that equals the old size is bound to the axis; a size that the code computes from two others (`C // num_heads`)
becomes an equation between their counts; what nothing explains is frozen, with the line as the reason. Each turn costs
one fake forward, alike modules are repaired together, and each turn binds, ties or freezes something, so it ends.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from torch import nn

from secateur.capture import capture
from secateur.dims.algebra import Dim, Leaf, count, find, leaves
from secateur.errors import first_line
from secateur.failure import Failure, Slot, blame, with_parts
from secateur.graph import Graph
from secateur.least import least
from secateur.numbers import Binding, is_spatial, known_bindings, own_numbers, part_at
from secateur.probing import probing_counts, telling_counts
from secateur.record import ForwardFailed, Op, Trace
from secateur.relations import Relation, equal, impose, quotient
from secateur.skeleton import Skeleton
from secateur.tensors import Inputs
from secateur.verification import compare

_MAX_TRIALS = 24
_UNKNOWN = 99  # axes wrong where a message names none: any that does is progress


@dataclass
class Repairer:
    """The loop's state: what is bound so far."""

    model: nn.Module
    inputs: Inputs
    graph: Graph
    bindings: list[Binding] = field(default_factory=list)
    inside: dict[str, dict[int, int]] = field(default_factory=dict)  # see `_under`
    turn: int = 0  # of the probing widths

    @cached_property
    def bones(self) -> Skeleton:
        """The model without its tensors, made when it is first needed."""
        return Skeleton(self.model)

    def run(self) -> None:
        """Bind, relate or freeze until a capture is as predicted.

        Under some widths chance hides what helps: 15 // 4 may be the width that 20 // 4 has, so that the right number
        shows no progress. So nothing is frozen before other widths were tried, and these don't have the last word.
        """
        while (failure := self._failure()) is not None:
            if self._explain(failure):
                continue
            self.turn ^= 1
            other = self.attempt(self.bindings)
            if other is None or not self._explain(other):
                self.turn ^= 1
                self._freeze(failure)

    def _failure(self) -> Failure | None:
        failure = self.attempt(self.bindings)
        if failure is None and self.turn:
            self.turn = 0
            failure = self.attempt(self.bindings)
        return failure

    def _explain(self, failure: Failure) -> bool:
        return self._bind(failure) or self._relate(failure)

    def reject(self, counts: Mapping[str, int]) -> bool:
        """Try the counts that an allocation chose. Where they fail, freeze what is to blame and return True."""
        if too_few := self._below_minimum(counts):
            for leaf, least in too_few.items():
                leaf.frozen = f"an operator has no value on fewer than {least} of its {leaf.size} indices"
            self.graph.refresh()
            return True
        chosen = self.graph.leaf_counts(counts)
        failure = self.attempt(self.bindings, chosen)
        if failure is not None:
            self._freeze(failure, chosen)
        return failure is not None

    def _widths(self) -> dict[Leaf, int]:
        """Those to probe with now."""
        return probing_counts(self.graph, self.turn)

    def _below_minimum(self, counts: Mapping[str, int]) -> dict[Leaf, int]:
        least: dict[Leaf, int] = {}
        for leaf, n in self.graph.solution.minimum.items():
            for now in leaves(leaf):
                least[now] = max(n, least.get(now, 1))
        return {leaf: least[leaf] for leaf, n in self.graph.leaf_counts(counts).items() if n < least.get(leaf, 1)}

    def attempt(self, bindings: Iterable[Binding], counts: Mapping[Leaf, int] | None = None) -> Failure | None:
        """Capture a skeleton of these widths, or of probing ones; None where it is as predicted."""
        counts = self._widths() if counts is None else counts
        if not counts:
            return None
        solution = self.graph.solution
        shapes = {
            value.key: tuple([count(d, counts) for d in solution.axes(value)])
            for value in solution.trace.tensors.values()
        }
        numbers = {(b.fqn, b.path): (b.dim.size, count(b.dim, counts)) for b in bindings}
        self.bones.resize(shapes, {place: (old, new) for place, (old, new) in numbers.items() if old != new})
        try:
            return self._judge(capture(self.bones.model, self.inputs), None, counts)
        except ForwardFailed as error:
            return self._judge(error.trace, error, counts)

    def _judge(self, after: Trace, error: ForwardFailed | None, counts: Mapping[Leaf, int]) -> Failure | None:
        differences = (d for d in compare(self.graph, after, counts) if not d.is_scale)
        first = next(differences, None)
        if first is None:
            return None
        op = self.graph.trace.ops[first.op]
        here = [first, *itertools.takewhile(lambda d: d.op == op.index, differences)]
        slots = list(self._slots(op, counts))
        near = tuple(s for s in slots if not s.is_output)
        if error is not None and here[0].is_end:
            cause = error.attempt
            wrong = blame(cause.error, op, [s for s in slots if s.is_output], lambda dim: count(dim, counts))
            text = f"{type(cause.error).__name__} at {cause.location}: {first_line(cause.error)}"
            n_wrong = sum(s.asked is not None for s in wrong) or _UNKNOWN
            return Failure(op, n_wrong, cause.fqn, text, tuple(wrong), near)
        asked = {id(find(d.expected)): d.actual for d in here if d.expected is not None}
        wrong = [replace(s, asked=asked[id(s.dim)]) for s in slots if id(s.dim) in asked]
        wrong += [
            Slot(op, True, -1, -1, find(d.expected)) for d in here if d.expected is not None and d.position is not None
        ]
        return Failure(op, len(here), op.fqn, here[0].text, tuple(wrong), near)

    def _axes(self, op: Op, is_output: bool) -> list[tuple[Dim, ...]]:
        values = op.outputs if is_output else op.values
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
                    for binding, slot in self._told_apart(option, candidates):
                        self.bindings += [binding, *self._alike(binding, slot)]
                    return True
        return False

    def _told_apart(
        self, option: list[tuple[Binding, Slot]], candidates: list[tuple[Binding, Slot]]
    ) -> list[tuple[Binding, Slot]]:
        """Of dims of one size that are also probed with one, those that the numbers count under other widths too."""
        first, second = self._widths(), telling_counts(self.graph, self.turn)

        def widths(binding: Binding) -> tuple[str, int, int]:
            return binding.path, count(binding.dim, first), count(binding.dim, second)

        told = list(option)
        for i, (binding, _) in enumerate(option):
            path, probed, other = widths(binding)
            rivals = [c for c in candidates if widths(c[0])[:2] == (path, probed) and widths(c[0])[2] != other]
            tried: dict[int, tuple[float, int]] = {}
            for rival in (told[i], *rivals) if rivals else ():
                rest = [b for k, (b, _) in enumerate(told) if k != i]
                after = self.attempt([*self.bindings, *rest, rival[0]], second)
                tried[id(rival)] = (math.inf, 0) if after is None else after.progress
            told[i] = max((told[i], *rivals), key=lambda c: tried.get(id(c), (0.0, 0)))
        return told

    def _improves(self, progress: tuple[int, int], extra: list[Binding]) -> bool:
        after = self.attempt([*self.bindings, *extra])
        return after is None or after.progress > progress

    def _scopes(self, failure: Failure) -> Iterator[str]:
        """The module that failed, the one that the operator was recorded in, the modules around them, then its own."""
        scopes: list[str] = []
        for fqn in (failure.fqn, failure.op.fqn):
            parts = fqn.split(".") if fqn else []
            scopes += [".".join(parts[:n]) for n in range(len(parts), -1, -1)]
        inside = [name for name, _ in self.model.get_submodule(failure.fqn).named_children()]
        scopes += [f"{failure.fqn}.{name}" if failure.fqn else name for name in inside]
        yield from dict.fromkeys(scopes)

    def _candidates(self, failure: Failure, scope: str) -> list[tuple[Binding, Slot]]:
        counts = self._widths()
        bound = {(b.fqn, b.path) for b in self.bindings}
        found: dict[tuple[str, int], tuple[Binding, Slot]] = {}
        for path, value in own_numbers(self.model.get_submodule(scope)):
            if (scope, path) in bound or value < 2:
                continue
            for slot in with_parts((*failure.wrong, *failure.near)):
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

    def _relate(self, failure: Failure) -> bool:
        """Explain an axis by a relation of counts that the code imposes, here and in alike modules."""
        for places in self._relations(failure)[:_MAX_TRIALS]:
            found = [self._relation(tuple(s.dim for s in places))]
            for twin in self._twins(failure.fqn):
                dims = tuple(self._at(failure.fqn, twin, s) for s in places)
                if all(d is not None for d in dims):
                    found.append(self._relation(dims))
            sizes = " // ".join(str(s.dim.size) for s in places[:0:-1])
            why = f"the code computes {places[0].dim.size} from {sizes}: {failure.op.where}"
            undo = impose(self.graph, [r for r in found if r is not None], why)
            after = self.attempt(self.bindings)
            if after is None or after.progress > failure.progress or self._bind_along(after, failure):
                return True
            undo()
        return False

    def _relation(self, dims: tuple[Dim | None, ...]) -> Relation | None:
        """Of (a, b): |a| = |b|; of (a, c, b): |a| = |b| // |c|."""
        a, *others = (d for d in dims if d is not None)
        return equal(a, *others) if len(others) == 1 else quotient(a, *others)

    def _relations(self, failure: Failure) -> list[tuple[Slot, ...]]:
        """Places whose counts could explain a wrong axis, best first: equal ones, then quotients.

        Those whose counts stay come last: what they explain could be chance, and it only keeps the axis whole.
        """
        counts = self._widths()
        around = {id(s.dim): s for s in reversed(list(self._around(failure)))}
        known = list(reversed(around.values()))
        wrong = list(with_parts(sorted(failure.wrong or failure.near, key=lambda s: s.asked is None)))

        def places() -> Iterator[tuple[Slot, ...]]:
            for a in wrong:
                for b in known:
                    fits = a.asked in (None, count(b.dim, counts))
                    if fits and b.dim.size == a.dim.size and self._relation((a.dim, b.dim)) is not None:
                        yield a, b
            for a in wrong:
                for b, c in itertools.permutations(known, 2):
                    if b.dim.size != a.dim.size * c.dim.size:
                        continue
                    fits = a.asked in (None, count(b.dim, counts) // count(c.dim, counts))
                    if fits and self._relation((a.dim, c.dim, b.dim)) is not None:
                        yield a, c, b

        return sorted(places(), key=lambda p: all(count(s.dim, counts) == s.dim.size for s in p[1:]))

    def _around(self, failure: Failure) -> Iterator[Slot]:
        """Axes and parts of axes at the failure and in its module, nearest first; frozen ones too."""
        places = [*failure.wrong, *failure.near]
        for index in self._under(failure.fqn):
            op = self.graph.trace.ops[index]
            for is_output in (False, True):
                for i, dims in enumerate(self._axes(op, is_output)):
                    places += [Slot(op, is_output, i, axis, dim) for axis, dim in enumerate(dims) if dim.size > 1]
        yield from with_parts(places)

    def _bind_along(self, after: Failure, failure: Failure) -> bool:
        """An equation may need a number bound with it before it shows progress."""
        return after.op.index <= failure.op.index and self._bind(after, beyond=failure.progress)

    def _freeze(self, failure: Failure, chosen: Mapping[Leaf, int] | None = None) -> None:
        """Keep the least that makes the forward go on, of ever wider circles around what nothing explains."""
        reason = f"no number or equation explains it: {failure.text}"

        def goes_on(blocks: list[tuple[Leaf, ...]]) -> bool:
            undo = impose(self.graph, [Relation(_joined(blocks), ())], reason)
            counts = None if chosen is None else {leaf: n for leaf, n in chosen.items() if leaf.frozen is None}
            after = self.attempt(self.bindings, counts)
            undo()
            return after is None or after.op.index > failure.op.index

        for circle in self._to_blame(failure):
            blocks = sorted(dict.fromkeys(b for b in circle if b), key=lambda b: b[0].size)
            if blocks and goes_on(blocks):
                impose(self.graph, [Relation(_joined(least(blocks, goes_on)), ())], reason)
                return

    def _to_blame(self, failure: Failure) -> Iterator[Iterable[tuple[Leaf, ...]]]:
        """Wider and wider circles around a failure; the last one is the whole network. What is alike goes together."""
        counts = self._widths()
        yield self._blocks(failure, [*failure.wrong, *failure.near])
        for scope in self._scopes(failure):
            slots = (s for index in self._under(scope) for s in self._slots(self.graph.trace.ops[index], counts))
            yield self._blocks(failure, slots)
        alike: dict[str, tuple[Leaf, ...]] = {}
        for g in self.graph.prunable:
            kind = re.sub(r"\d+", "", g.name)
            alike[kind] = (*alike.get(kind, ()), g.leaf)
        yield alike.values()

    def _blocks(self, failure: Failure, slots: Iterable[Slot]) -> Iterator[tuple[Leaf, ...]]:
        """What may shrink at each place, and at the same place in alike modules."""
        for slot in with_parts(slots):
            if isinstance(slot.dim, Leaf) and slot.dim.frozen is None:
                there = [self._at(failure.op.fqn, twin, slot) for twin in self._twins(failure.op.fqn)]
                found = [leaf for d in there if d is not None for leaf in leaves(d) if leaf.frozen is None]
                yield tuple(dict.fromkeys([slot.dim, *found]))


def _joined(blocks: Iterable[tuple[Leaf, ...]]) -> tuple[Leaf, ...]:
    return tuple(dict.fromkeys(leaf for block in blocks for leaf in block))


def repair(model: nn.Module, inputs: Inputs, graph: Graph) -> Repairer:
    """Find which numbers of the model's modules follow which dims; freeze or tie in `graph` what can't be followed.

    The model is not changed. Raises SecateurError only where the model itself can't be copied or captured.
    """
    repairer = Repairer(model, inputs, graph, known_bindings(model, graph))
    repairer.run()
    return repairer
