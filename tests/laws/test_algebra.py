"""Laws of the dimension algebra, on random expressions.

The meaning of a dim is the list of its indices, each made of indices of leaves: `meaning` writes that down slowly.
Two dims are equal where they mean the same, so that every choice of kept leaf indices keeps the same of both.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from secateur.dims.algebra import (
    ONE,
    AlignError,
    Cat,
    Dim,
    Leaf,
    Prod,
    cat,
    count,
    factor,
    find,
    freeze,
    kept,
    leaves,
    new,
    prod,
    split,
    unify,
)
from secateur.dims.groups import Member, occurrences

from .settings import some

MAX_SIZE = 48


@st.composite
def dims(draw: st.DrawFn, pool: list[Leaf] | None = None, depth: int = 2) -> Dim:
    """A random expression of at most 48 indices, over fresh leaves or those of a pool."""
    kind = draw(st.sampled_from(["leaf", "cat", "prod"] if depth else ["leaf"]))
    if kind == "leaf":
        return draw(st.sampled_from(pool)) if pool else new(draw(st.integers(1, 6)))
    parts = draw(st.lists(dims(pool=pool, depth=depth - 1), min_size=2, max_size=3))
    made = cat(parts) if kind == "cat" else prod(parts)
    assume(made.size <= MAX_SIZE)
    return made


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Dim, Dim]:
    """Two expressions of one size, that may share leaves."""
    pool = [Leaf(n) for n in draw(st.lists(st.sampled_from([2, 3, 4, 6, 2, 12]), min_size=1, max_size=4))]
    a = draw(dims(pool=pool))
    how = draw(st.sampled_from(["cut", "grid", "any"]))
    others = [Leaf(n) for n in (2, 3, 4, 6)]
    if how == "any":
        b = draw(dims(pool=pool + others))
        missing = a.size - b.size
        if missing < 0:
            a = cat([a, Leaf(-missing)])
        elif missing:
            b = cat([b, Leaf(missing)])
        return a, b
    if how == "cut":
        cuts = sorted({0, a.size, *draw(st.lists(st.integers(0, a.size), max_size=3))})
        return a, cat(new(y - x) for x, y in itertools.pairwise(cuts))
    divisors = [n for n in range(1, a.size + 1) if a.size % n == 0]
    inner = draw(st.sampled_from(divisors))
    return a, prod([new(a.size // inner), new(inner)])


def meaning(dim: Dim) -> list[frozenset[tuple[int, int]]]:
    """For each index of a dim, the leaf indices it is made of, as (id of the leaf, index in the leaf)."""
    dim = find(dim)
    if isinstance(dim, Leaf):
        return [frozenset({(id(dim), i)}) for i in range(dim.size)]
    if isinstance(dim, Cat):
        return [index for part in dim.parts for index in meaning(part)]
    assert isinstance(dim, Prod)
    return [frozenset().union(*row) for row in itertools.product(*map(meaning, dim.factors))]


def random_keep(draw_from: st.DataObject, *expressions: Dim) -> dict[Leaf, Tensor]:
    found = {id(leaf): leaf for d in expressions for leaf in leaves(d)}
    return {
        leaf: torch.tensor(sorted(draw_from.draw(st.sets(st.integers(0, leaf.size - 1), min_size=1))))
        for leaf in found.values()
    }


def kept_slowly(dim: Dim, keep: Mapping[Leaf, Tensor]) -> list[int]:
    left = {(id(leaf), i) for leaf, index in keep.items() for i in index.tolist()}
    return [i for i, made_of in enumerate(meaning(dim)) if made_of <= left]


def is_normal(dim: Dim) -> bool:
    """Flat: no `Cat` in a `Cat`, no `Prod` in a `Prod`, no bound leaf, no factor 1, no single child."""
    if isinstance(dim, Leaf):
        return dim.bound is None
    children = dim.parts if isinstance(dim, Cat) else dim.factors
    if dim is ONE:
        return True
    return (
        len(children) > 1
        and all(type(c) is not type(dim) and is_normal(c) for c in children)
        and all(c.size > (1 if isinstance(dim, Prod) else 0) for c in children)
    )


def has_singletons(dim: Dim) -> bool:
    dim = find(dim)
    parts = dim.parts if isinstance(dim, Cat) else dim.factors if isinstance(dim, Prod) else ()
    return any((isinstance(dim, Cat) and p.size == 1) or has_singletons(p) for p in parts)


@some(80)
@given(pairs(), st.data())
def test_unified_dims_keep_the_same_indices(pair, data):
    a, b = pair
    try:
        unify(a, b)
    except AlignError:
        return
    assert meaning(a) == meaning(b)
    keep = random_keep(data, a, b)
    assert torch.equal(kept(a, keep), kept(b, keep))
    assert is_normal(find(a))
    assert is_normal(find(b))


@some(80)
@given(pairs())
def test_dims_that_do_not_align_keep_their_sizes(pair):
    """A failed unification may refine leaves but changes no size, and what it bound still is in normal form."""
    a, b = pair
    sizes = a.size, b.size
    try:
        unify(a, b)
    except AlignError:
        assert (len(meaning(a)), len(meaning(b))) == sizes
        assert is_normal(find(a))
        assert is_normal(find(b))


@some(60)
@given(pairs())
def test_unify_is_idempotent(pair):
    a, b = pair
    try:
        unify(a, b)
    except AlignError:
        return
    assume(not has_singletons(a) and not has_singletons(b))
    first = meaning(a)
    unify(a, b)
    unify(b, a)
    assert meaning(a) == meaning(b) == first


def test_unify_is_idempotent_where_segments_became_singletons():
    p = Leaf(2)
    grid, row = prod([p, p]), cat([Leaf(2), Leaf(2)])
    unify(grid, row)
    unify(grid, row)
    assert meaning(grid) == meaning(row)


@some(60)
@given(st.data())
def test_unify_is_symmetric(data):
    """a = b and b = a say the same: the same indices become one."""

    sizes = data.draw(st.lists(st.sampled_from([2, 3, 4, 6]), min_size=2, max_size=4))
    one, two = [Leaf(n) for n in sizes], [Leaf(n) for n in sizes]
    left, right = data.draw(_shapes(len(sizes))), data.draw(_shapes(len(sizes)))
    a, b, c, d = _make(left, one), _make(right, one), _make(left, two), _make(right, two)
    assume(a.size == b.size <= MAX_SIZE)
    results = []
    for x, y in ((a, b), (d, c)):
        try:
            unify(x, y)
            results.append(True)
        except AlignError:
            results.append(False)
    assert results[0] == results[1]
    if results[0]:
        assert _pattern(one) == _pattern(two)


def _shapes(n: int) -> st.SearchStrategy:
    kinds = st.sampled_from(["cat", "prod"])
    return st.recursive(
        st.integers(0, n - 1),
        lambda shapes: st.tuples(kinds, st.lists(shapes, min_size=2, max_size=3)),
        max_leaves=4,
    )


def _make(shape, pool: list[Leaf]) -> Dim:
    if isinstance(shape, int):
        return pool[shape]
    kind, parts = shape
    return (cat if kind == "cat" else prod)(_make(p, pool) for p in parts)


def _pattern(pool: list[Leaf]) -> list[list[int]]:
    """How much of what they are made of any two indices of the leaves share, whatever stands for them."""
    indices = [index for leaf in pool for index in meaning(leaf)]
    return [[len(x & y) for y in indices] for x in indices]


@some(60)
@given(dims(), st.data())
def test_kept_and_count_are_those_of_the_slow_version(dim, data):
    keep = random_keep(data, dim)
    assert kept(dim, keep).tolist() == kept_slowly(dim, keep)
    assert count(dim, {leaf: len(i) for leaf, i in keep.items()}) == len(kept(dim, keep))
    assert torch.equal(kept(dim, {}), torch.arange(dim.size))


@some(60)
@given(dims(), st.data())
def test_split_keeps_the_meaning(dim, data):
    assume(dim.size > 1)
    at = data.draw(st.integers(1, dim.size - 1))
    try:
        left, right = split(dim, at)
    except AlignError:
        return
    assert (left.size, right.size) == (at, dim.size - at)
    assert meaning(left) + meaning(right) == meaning(dim) == meaning(cat([left, right]))


@some(60)
@given(dims(), st.data())
def test_factor_keeps_the_meaning(dim, data):
    inner_size = data.draw(st.sampled_from([n for n in range(1, dim.size + 1) if dim.size % n == 0]))
    try:
        outer, inner = factor(dim, inner_size)
    except AlignError:
        return
    assert (outer.size, inner.size) == (dim.size // inner_size, inner_size)
    assert meaning(prod([outer, inner])) == meaning(dim)


@some(60)
@given(dims(pool=[Leaf(2), Leaf(3), Leaf(4)]))
def test_occurrences_are_every_place_of_every_leaf(dim):
    """Views of arange give, for each index of a leaf, exactly the indices of the dim that are made of it."""
    whole = torch.arange(dim.size)
    made_of = meaning(dim)
    found: dict[tuple[int, int], list[int]] = {}
    for leaf, offset, stride, loops in occurrences(dim):
        view = Member("w", 0, "other", leaf.size, offset, stride, loops).view(whole)
        assert view.shape == (leaf.size, *(n for n, _ in loops))
        for i, row in enumerate(view.reshape(leaf.size, -1).tolist()):
            found.setdefault((id(leaf), i), []).extend(row)
    for place, indices in found.items():
        assert set(indices) == {i for i, index in enumerate(made_of) if place in index}
    assert {place for index in made_of for place in index} == found.keys()


@some(50)
@given(dims(depth=1), st.integers(0, 1), st.integers(0, 2))
def test_a_view_of_any_axis_holds_the_other_axes_last(dim, axis, n_before):
    shape = [2, 3, 4]
    shape[axis] = dim.size
    tensor = torch.arange(2 * 3 * 4 * dim.size).reshape(-1)[: torch.Size(shape).numel()].view(shape)
    for leaf, offset, stride, loops in occurrences(dim):
        view = Member("w", axis, "other", leaf.size, offset, stride, loops).view(tensor)
        moved = tensor.movedim(axis, 0)
        index = Member("w", 0, "other", leaf.size, offset, stride, loops).view(torch.arange(dim.size))
        assert torch.equal(view, moved[index])


@some(60)
@given(pairs(), st.booleans())
def test_freezing_spreads_through_what_is_unified(pair, before):
    a, b = pair
    if before:
        freeze(a, "first")
    try:
        unify(a, b)
    except AlignError:
        return
    if not before:
        freeze(a, "first")
    freeze(b, "second")
    assert all(leaf.frozen == "first" for d in (a, b) for leaf in leaves(d))


@some(50)
@given(st.lists(pairs(), min_size=2, max_size=4), st.data())
def test_equations_stay_true_under_later_ones(equations, data):
    held = []
    for a, b in equations:
        try:
            unify(a, b)
        except AlignError:
            freeze(a, "no alignment")
            freeze(b, "no alignment")
            continue
        held.append((a, b))
        assert all(meaning(x) == meaning(y) for x, y in held)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (prod([Leaf(2), Leaf(3)]), prod([Leaf(3), Leaf(2)])),
        (cat([Leaf(3), Leaf(3)]), prod([Leaf(3), Leaf(2)])),
        (Leaf(3), Leaf(4)),
    ],
    ids=["grids", "row through a cut", "sizes"],
)
def test_what_has_no_common_refinement_is_refused(a, b):
    with pytest.raises(AlignError):
        unify(a, b)
