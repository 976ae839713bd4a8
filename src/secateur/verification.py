"""Verification: does the pruned model compute what it should?

Two proofs. Shapes: the pruned model is captured again and every operator must have the shape, and every counted
argument the value, that the plan predicts. Numbers: the law of `secateur.law`, on every output and, by samples, on
every operator, so that an error is found where it arises and a network whose last layer is zero is no excuse.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture import capture
from secateur.dims.algebra import Dim, Leaf, count, kept, leaves
from secateur.dims.rule import Position
from secateur.errors import CaptureError, PlanError
from secateur.graph import Graph, trace
from secateur.law import Law, Sampler
from secateur.observe import run
from secateur.plans import Plan
from secateur.record import Op, Trace, Value, is_same
from secateur.specs import from_spec
from secateur.tensors import Inputs, as_call, tensors_in

aten = torch.ops.aten

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest relative difference that rounding explains, by dtype of the output."""


@dataclass(frozen=True)
class VerifyReport:
    """What the proof found.

    Attributes:
        problems: what contradicts the plan; empty where the model is proven.
        max_difference: the largest |reference - pruned| over the largest |reference|, over all outputs; None where no
            numbers could be compared.
        n_ops: operators whose shapes were compared.
        renormalised: operators that normalise across something dropped.
        unchecked: why numbers were not compared, where they were not.
        until: the operator where the code goes on by a learned value, where there is one. What follows reads no tensor
            that is cut and was run, not compared (see `secateur.choices`).
    """

    problems: tuple[str, ...] = ()
    max_difference: float | None = None
    tolerance: float = 0.0
    n_ops: int = 0
    renormalised: tuple[str, ...] = ()
    unchecked: str = ""
    until: str = ""

    @property
    def is_ok(self) -> bool:
        """True where nothing contradicts the plan."""
        return not self.problems

    def __str__(self) -> str:
        state = "verified" if self.is_ok else "NOT verified"
        numbers = (
            f"largest relative difference {self.max_difference:.1e} (tolerance {self.tolerance:.0e})"
            if self.max_difference is not None
            else f"numbers not compared: {self.unchecked}"
        )
        lines = [f"{state}: shapes of {self.n_ops} operators, {numbers}"]
        lines += [f"problem: {p}" for p in self.problems]
        if self.until:
            lines.append(f"compared up to {self.until}; what follows was run")
        if self.renormalised:
            lines.append(f"re-normalised: {len(self.renormalised)} operators, the first {self.renormalised[0]}")
        return "\n".join(lines)


@torch.inference_mode(False)
def verify(
    model: nn.Module, small: nn.Module, plan: Plan, inputs: Inputs | None = None, *, tolerance: float | None = None
) -> VerifyReport:
    """Prove that `small` is what `plan` makes of `model`.

    Args:
        model: the dense model; `small`: the pruned one.
        inputs: example inputs; without them, random ones of the plan's shapes.
        tolerance: largest relative difference allowed; by default that of the outputs' dtype (`TOLERANCES`).
    Returns:
        A report; `is_ok` where the proof holds. Nothing is raised for a model that fails it.
    """
    if inputs is None:
        inputs = from_spec(plan.inputs)
    on_meta = any(t.is_meta for t in (*model.parameters(), *small.parameters(), *tensors_in(as_call(inputs))))
    sampler = None if on_meta else Sampler()
    try:
        after = capture(small, inputs, is_fake=on_meta, watch=sampler)
    except CaptureError as error:
        return VerifyReport(problems=(str(error),))
    proof = _Proof(model, small, plan, inputs, after, sampler, tolerance)
    report = proof.against(is_fake=True)
    if report.is_ok or on_meta:
        return report
    # Code may take another path without values. A proof by such a record stands, since the law notes where a real run
    # leaves it; a failure has to be one by the record of a real run too, which takes a whole forward more.
    return proof.against(is_fake=False)


@dataclass(frozen=True)
class _Proof:
    """A pruned model with its own record and its samples, to be held against records of the original."""

    model: nn.Module
    small: nn.Module
    plan: Plan
    inputs: Inputs
    after: Trace
    sampler: Sampler | None  # None on the meta device
    tolerance: float | None

    def against(self, *, is_fake: bool) -> VerifyReport:
        """Compare shapes with the record of a forward of the original, then numbers with a real run along it."""
        try:
            graph = trace(self.model, self.inputs, is_fake=is_fake)
            keep = leaf_keep(graph, self.plan)
        except (PlanError, CaptureError) as error:
            return VerifyReport(problems=(str(error),))
        counts = {leaf: len(index) for leaf, index in keep.items()}
        differences = list(compare(graph, self.after, counts))
        scales = {d.op: d.scales for d in differences if d.is_scale}
        report = VerifyReport(
            problems=tuple(d.text for d in differences if not d.is_scale),
            n_ops=len(self.after.ops),
            renormalised=_renormalised(graph, counts, scales),
            until=graph.trace.ended_by,
        )
        if report.problems:
            return report
        if self.sampler is None:
            return replace(report, unchecked="weights or inputs are on the meta device")
        return self._numbers(report, Law(graph, keep, scales, self.sampler), self.sampler.results)

    def _numbers(self, report: VerifyReport, law: Law, actual: list[Tensor]) -> VerifyReport:
        expected = run(self.model, self.inputs, law)
        allowed = self.tolerance
        if allowed is None:
            allowed = max(TOLERANCES.get(t.dtype, 0.0) for t in expected)
        largest = max((_relative(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)
        problems = [law.problem] if law.problem else []
        problems += _problems_beyond(self.small, self.inputs) if report.until else []
        if largest > allowed:
            problems.append(f"outputs differ by {largest:.2e} of the largest value; {allowed:.0e} is allowed")
        return replace(report, problems=tuple(problems), max_difference=largest, tolerance=allowed)


def _problems_beyond(small: nn.Module, inputs: Inputs) -> list[str]:
    """Run a model to its end, on its own choices."""
    try:
        run(small, inputs, contextlib.nullcontext())
    except Exception as error:
        return [f"the pruned model fails after the end of the record: {type(error).__name__}: {error}"]
    return []


def _relative(expected: Tensor, actual: Tensor) -> float:
    """max |expected - actual| / max |expected|; infinity where one is not finite and the other is."""
    if expected.numel() == 0:
        return 0.0
    wide = torch.complex128 if expected.is_complex() else torch.float64
    a, b = expected.to(wide), actual.to(wide)
    if not torch.equal(a.isfinite(), b.isfinite()):
        return float("inf")
    a, b = (torch.where(t.isfinite(), t, torch.zeros_like(t)) for t in (a, b))
    scale, gap = a.abs().max().item(), (a - b).abs().max().item()
    return gap / scale if scale else (0.0 if gap == 0 else float("inf"))


def leaf_keep(graph: Graph, plan: Plan) -> dict[Leaf, Tensor]:
    """Kept indices of each leaf, read off the plan's tensors alone: names play no part.

    Raises:
        PlanError: the plan cuts an axis in a way that its groups can't explain, or cuts a frozen group.
    """
    axes = {key: plan.keep(key) for key in plan.tensors}
    keep: dict[Leaf, Tensor] = {}
    for group in graph.groups:
        for member in group.members:
            index = axes[member.key][member.axis] if member.key in axes else None
            if index is None:
                continue
            n = graph.trace.tensors[member.key].shape[member.axis]
            stays = torch.zeros(n, dtype=torch.bool).index_fill_(0, index, True)
            places = member._replace(axis=0).view(stays).reshape(group.size, -1)
            left = places.any(1).nonzero().flatten()
            if len(left) < group.size:
                keep.setdefault(group.leaf, left)
    unread = set(graph.trace.unread)  # used only in training: its shapes are the plan's word
    for value in graph.trace.tensors.values():
        if value.key in unread:
            continue
        for axis, dim in enumerate(graph.solution.axes(value)):
            planned = axes[value.key][axis] if value.key in axes else None
            expected = kept(dim, keep)
            if not torch.equal(expected, torch.arange(dim.size) if planned is None else planned):
                raise PlanError(
                    f"The plan keeps {'all' if planned is None else len(planned)} of axis {axis} of '{value.key}', but"
                    f" what it does to other tensors means {len(expected)} of {dim.size}. They must shrink together."
                )
            if len(expected) < dim.size and all(leaf.frozen for leaf in leaves(dim)):
                raise PlanError(f"The plan cuts '{value.key}', whose axis {axis} is frozen: {leaves(dim)[0].frozen}.")
    return keep


@dataclass(frozen=True)
class Difference:
    """Where the pruned model's record is not what the plan predicts.

    `axis` is an output axis, or None; `position` an argument. `is_scale`: a number that the code computed from a width
    (1/sqrt(head_dim), a mean's count); the smaller network uses its own, and the reference does the same.
    """

    op: int
    text: str
    expected: Dim | None = None
    actual: int | None = None
    position: Position | None = None
    is_scale: bool = False
    is_end: bool = False  # one record is longer than the other
    scales: Mapping[Position, Any] = field(default_factory=dict)


def compare(graph: Graph, after: Trace, counts: Mapping[Leaf, int]) -> Iterator[Difference]:
    """Every difference between the prediction and a record, in order; scales are differences too (see `Difference`).

    Torch decides by size and layout whether a reshape copies, so copies take no part and all views count alike.
    """
    befores, nows = graph.trace.essential, after.essential
    for before, now in zip(befores, nows, strict=False):
        if not is_same(before.target, now.target):
            yield Difference(before.index, f"{before.where} became {now.where}")
            return
        yield from _compare_shapes(graph, before, now, counts)
        yield from _compare_numbers_of(graph, before, now, counts)
    if len(befores) != len(nows):
        n = min(len(befores), len(nows), len(befores) - 1)
        yield Difference(befores[n].index, f"{len(befores)} operators became {len(nows)}", is_end=True)


def _compare_shapes(graph: Graph, before: Op, now: Op, counts: Mapping[Leaf, int]) -> Iterator[Difference]:
    if len(before.outputs) != len(now.outputs):
        text = f"{len(before.outputs)} outputs became {len(now.outputs)}: {before.where}"
        yield Difference(before.index, text)
        return
    for value, other in zip(before.outputs, now.outputs, strict=True):
        if value is None or other is None:
            continue
        dims = graph.solution.axes(value)
        for axis, dim in enumerate(dims):
            if axis >= len(other.shape) or (n := count(dim, counts)) != other.shape[axis]:
                actual = other.shape[axis] if axis < len(other.shape) else None
                text = f"axis {axis} is {actual}, the plan says {n} (was {dim.size}): {before.where}"
                yield Difference(before.index, text, expected=dim, actual=actual)


def _compare_numbers_of(graph: Graph, before: Op, now: Op, counts: Mapping[Leaf, int]) -> Iterator[Difference]:
    """Compare arguments that are numbers. A counted one has a predicted value; one that only spells a shape is free."""
    scales: dict[Position, Any] = {}
    pairs: list[tuple[Position, Any, Any]] = [
        (i, a, b) for i, (a, b) in enumerate(zip(before.args, now.args, strict=False))
    ]
    pairs += [(k, a, now.kwargs.get(k)) for k, a in before.kwargs.items()]
    for position, old, new in pairs:
        if isinstance(old, Value) and isinstance(new, Value):  # a constant of one element is a number too
            old, new = (None if v is None else v.number for v in (old, new))
        expected = graph.solution.expected.get((before.index, position))
        if expected is not None:
            if new != (n := count(expected, counts)):
                text = f"argument {position} is {new}, the plan says {n} (was {old}): {before.where}"
                yield Difference(before.index, text, expected=expected, actual=new, position=position)
        elif _is_number(old) and old != new:
            if before.index in graph.solution.shape_decides or before.target is aten.slice.Tensor:
                continue
            if torch.Tag.pointwise in before.target.tags or isinstance(old, float):
                scales[position] = new
            else:
                yield Difference(before.index, f"argument {position} changed from {old} to {new}: {before.where}")
    if scales:
        text = f"{', '.join(f'{v:.4g}' for v in scales.values())} computed from a width: {before.where}"
        yield Difference(before.index, text, is_scale=True, scales=scales)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _renormalised(graph: Graph, counts: Mapping[Leaf, int], scales: Mapping[int, Any]) -> tuple[str, ...]:
    def shrinks(dim: Dim) -> bool:
        return count(dim, counts) < dim.size

    ops = {r.op for r in graph.solution.renormalised if any(map(shrinks, r.dims))}
    ops |= {r.op for r in graph.solution.reads if r.how != "zero" and shrinks(r.dim)}
    return tuple(graph.trace.ops[i].where for i in sorted(ops | scales.keys()))
