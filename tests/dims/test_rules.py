"""Contract of operator rules: every registered rule has a case, and what it says is true of numbers.

The law: cut the inputs to any kept indices of their dims, run the operator, and get what the full operator gives on
inputs whose dropped indices have no say, cut to the kept indices of the output's dims.
"""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from secateur.dims.algebra import Dim, Leaf, count, find, kept, leaves, new
from secateur.dims.rule import OP_RULES, Solution, rule_of
from secateur.dims.solve import _apply_rule, settle_ties
from secateur.record import Op, Trace, Value

from .rule_cases import CASES, Case, T


class Call:
    """One call of an operator, its real tensors, and the equations that its rule states."""

    def __init__(self, case: Case) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(0)
        specs = pytree.tree_leaves((case.args, case.kwargs))
        self.tensors = [t.make(generator) for t in specs if isinstance(t, T)]
        self.args, self.kwargs = self.fill(self.tensors)
        values = [Value(i, tuple(t.shape), t.dtype, "input") for i, t in enumerate(self.tensors)]
        self.outputs = self.run(self.args, self.kwargs)
        made = [Value(len(values) + i, tuple(t.shape), t.dtype, "op") for i, t in enumerate(self.outputs)]
        if case.op._schema.name.endswith("_") and made[0].shape == values[0].shape:
            made[0] = values[0]  # written in place; where the shape changes too, capture makes a new value
        args, kwargs = self.fill(values)
        self.op = Op(0, case.op, args, kwargs, tuple(made), "module", "file.py:1")
        self.made = made
        self.solution = Solution(Trace((self.op,), tuple(values), (), {}))
        for spec, value in zip([t for t in specs if isinstance(t, T)], values, strict=True):
            self.solution.dims[value.index] = tuple(
                new(n, "whole" if i in spec.whole else None) for i, n in enumerate(value.shape)
            )
        self.values = values
        _apply_rule(self.solution, self.op, rule_of(self.op.target))
        settle_ties(self.solution)

    def fill(self, tensors: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        left = iter(tensors)
        return pytree.tree_map(lambda a: next(left) if isinstance(a, T) else a, (self.case.args, self.case.kwargs))

    def run(self, args: Any, kwargs: Any) -> list[Tensor]:
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        out = (self.case.run or self.case.op)(*args, **kwargs)
        return [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]

    def dims(self, value: Value) -> tuple[Dim, ...]:
        return self.solution.axes(value)

    def free_leaves(self) -> list[Leaf]:
        everything = [leaf for v in (*self.values, *self.made) for d in self.dims(v) for leaf in leaves(d)]
        return [leaf for leaf in dict.fromkeys(everything) if leaf.frozen is None and leaf.size]

    def random_keep(self, rng: random.Random) -> dict[Leaf, Tensor]:
        """Any indices of the free leaves; tied leaves keep equal counts."""
        counts: dict[Leaf, int] = {}
        for leaf in self.free_leaves():
            counts[leaf] = rng.randint(self.solution.minimum.get(leaf, 1), leaf.size)
        for a, b, _ in self.solution.ties:
            a, b = find(a), find(b)
            assert a.size == b.size
            counts[b] = counts[a] = min(counts[a], counts[b])
        for a, b, _ in self.solution.ties * 3:  # ties of ties
            counts[find(a)] = counts[find(b)] = min(counts[find(a)], counts[find(b)])
        return {leaf: torch.tensor(sorted(rng.sample(range(leaf.size), n))) for leaf, n in counts.items()}

    def small_outputs(self, keep: dict[Leaf, Tensor]) -> list[Tensor]:
        """The operator on cut inputs, with the numbers that follow."""
        cuts = [cut(t, [kept(d, keep) for d in self.dims(v)]) for t, v in zip(self.tensors, self.values, strict=True)]
        args, kwargs = self.fill(cuts)
        counts = {leaf: len(i) for leaf, i in keep.items()}
        for (_, position), dim in self.solution.expected.items():
            n = count(dim, counts)
            if isinstance(position, int):
                args = (*args[:position], n, *args[position + 1 :])
            else:
                kwargs = {**kwargs, position: n}
        if self.case.resize is not None:
            args = self.case.resize(args, [tuple(count(d, counts) for d in self.dims(v)) for v in self.made])
        return self.run(args, kwargs)

    def large_outputs(self, keep: dict[Leaf, Tensor]) -> list[Tensor]:
        """The full operator where dropped indices have no say, cut to what is kept."""
        args, kwargs = self.args, dict(self.kwargs)
        for read in self.solution.reads:
            x = args[read.position] if isinstance(read.position, int) else kwargs[read.position]
            x = neutral(x, read.axis, kept(read.dim, keep), read.how)
            if isinstance(read.position, int):
                args = (*args[: read.position], x, *args[read.position + 1 :])
            else:
                kwargs[read.position] = x
        shrunk = [r for r in self.solution.renormalised if any(leaf in keep for d in r.dims for leaf in leaves(d))]
        if shrunk:
            target = self.case.run or self.case.op
            out = shrunk[0].reference(target, args, kwargs, lambda dim: kept(dim, keep))
            outputs = [t for t in (out if isinstance(out, tuple | list) else (out,)) if isinstance(t, Tensor)]
        else:
            outputs = self.run(args, kwargs)
        return [self.renumbered(t, v, keep) for t, v in zip(outputs, self.made, strict=True)]

    def renumbered(self, x: Tensor, value: Value, keep: dict[Leaf, Tensor]) -> Tensor:
        """An output cut to what is kept; where its elements index a dim, they count what is left of it."""
        if value is not self.made[0]:
            return x  # statistics for the backward pass, in layouts of the kernel's own
        x = cut(x, [kept(d, keep) for d in self.dims(value)])
        indexed = self.solution.indexes.get(value.index)
        return x if indexed is None else torch.searchsorted(kept(indexed, keep), x)


def cut(x: Tensor, index: list[Tensor]) -> Tensor:
    for axis, i in enumerate(index):
        x = x.index_select(axis, i)
    return x


def neutral(x: Tensor, axis: int, index: Tensor, how: str) -> Tensor:
    if how == "select":
        return x.index_select(axis, index)
    fill = {"zero": 0.0, "lowest": -torch.inf, "highest": torch.inf}[how]
    out = torch.full_like(x, fill)
    return out.index_copy(axis, index, x.index_select(axis, index))


def parameters(cases: list[Case], *bugs: str) -> list[Any]:
    """Cases with an open bug must fail."""
    reasons = ["".join(getattr(c, bug) for bug in bugs) for c in cases]
    marks = [[pytest.mark.xfail(strict=True, reason=reason)] if reason else [] for reason in reasons]
    return [pytest.param(c, id=str(c), marks=m) for c, m in zip(cases, marks, strict=True)]


def call_of(case: Case) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operators that torch would rather not see used
        return Call(case)


def test_every_registered_rule_has_a_case():
    pytest.importorskip("torchvision")  # its operators are registered by name
    missing = sorted(map(str, OP_RULES.keys() - {c.op for c in CASES} - {c.op._schema.name for c in CASES}))
    assert not missing, f"operators without a case in rule_cases.py: {missing}"


@pytest.mark.parametrize("case", parameters(CASES, "fails"))
def test_outputs_have_the_sizes_of_the_real_operator(case: Case):
    call = call_of(case)
    assert not call.solution.unknown
    for value, tensor in zip(call.made, call.outputs, strict=True):
        assert tuple(d.size for d in call.dims(value)) == tuple(tensor.shape)
    assert bool(call.free_leaves()) == case.is_free


@pytest.mark.parametrize("case", parameters([c for c in CASES if c.is_free], "fails", "fails_cut"))
def test_cutting_before_an_operator_equals_cutting_after_it(case: Case):
    call = call_of(case)
    rng = random.Random(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(12):
            keep = call.random_keep(rng)
            small, large = call.small_outputs(keep), call.large_outputs(keep)
            assert len(small) == len(large)
            assert small[0].shape == large[0].shape
            if not case.is_random:
                torch.testing.assert_close(small[0], large[0], rtol=1e-9, atol=1e-9)
