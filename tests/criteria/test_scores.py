"""Each criterion against a slow loop that says the same in the plainest way."""

from __future__ import annotations

import math
from itertools import chain
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.criteria import L1, L2, BnScale, Context, Cosine, GeometricMedian, Lamp, Random, Taylor, score_groups
from secateur.criteria.redundancy import elimination_scores
from secateur.errors import ConfigError, GroupError


def member(key, role, axis=0):
    return SimpleNamespace(key=key, role=role, axis=axis, view=lambda tensor: tensor.movedim(axis, 0))


def group(*members, size=4, name="g"):
    return SimpleNamespace(name=name, size=size, members=members, frozen_reason=None)


PRODUCER, READER = member("w", "producer"), member("r", "reader", axis=1)
BIAS, STATISTIC = member("b", "bias"), member("m", "statistic")
SCALE, SECOND_SCALE = member("s", "scale"), member("s2", "scale")
SHAPES = {"w": (4, 3, 2), "r": (5, 4, 2), "b": (4,), "m": (4,), "s": (4,), "s2": (4,)}


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return {key: torch.randn(shape, generator=generator) for key, shape in SHAPES.items()}


def elements(source, members, unit):
    """All numbers of one unit, one list per member."""
    return [source[m.key].select(m.axis, unit).flatten().tolist() for m in members]


def divided(values, how):
    scale = {"none": 1.0, "mean": sum(values) / len(values), "max": max(values)}[how]
    return torch.tensor([value / scale for value in values])


seeds = st.integers(0, 1000)
normalizations = st.sampled_from(["none", "mean", "max"])


@settings(max_examples=25, deadline=None)
@given(seeds, normalizations)
def test_magnitude_is_the_norm_of_all_learned_numbers(seed, how):
    source, members = draw(seed), (PRODUCER, READER, BIAS, SCALE)
    found = group(*members, STATISTIC)
    numbers = [list(chain.from_iterable(elements(source, members, c))) for c in range(4)]
    l1 = [sum(abs(v) for v in row) for row in numbers]
    l2 = [math.sqrt(sum(v * v for v in row)) for row in numbers]
    torch.testing.assert_close(L1(normalize=how).score(found, Context(source)), divided(l1, how))
    torch.testing.assert_close(L2(normalize=how).score(found, Context(source)), divided(l2, how))


def test_roles_choose_what_magnitude_sees():
    source = draw(0)
    expected = torch.tensor([source["r"][:, c].abs().sum() for c in range(4)])
    criterion = L1(roles=("reader",), normalize="none")
    torch.testing.assert_close(criterion.score(group(PRODUCER, READER), Context(source)), expected)


def test_magnitude_without_a_member_of_its_roles_is_an_error():
    with pytest.raises(GroupError, match="Group 'g' has no member of roles producer; it has bias, reader"):
        L2(roles=("producer",)).score(group(READER, BIAS), Context(draw(0)))


@pytest.mark.parametrize("criterion", [L1(), L2(), L2(normalize="max"), BnScale()], ids=str)
def test_weights_that_are_all_zero_score_zero(criterion):
    zeros = {key: torch.zeros(shape) for key, shape in SHAPES.items()}
    (scores,) = score_groups([group(PRODUCER, SCALE)], criterion, Context(zeros)).values()
    assert scores.tolist() == [0, 0, 0, 0]


@settings(max_examples=10, deadline=None)
@given(seeds, st.floats(0.01, 100))
def test_normalized_scores_do_not_see_the_scale_of_a_group(seed, factor):
    source = draw(seed)
    scaled = {key: value * factor for key, value in source.items()}
    found = group(PRODUCER, READER)
    torch.testing.assert_close(L2().score(found, Context(scaled)), L2().score(found, Context(source)))


def test_bn_scale_averages_the_absolute_scales_of_all_norms():
    source = draw(3)
    expected = torch.tensor([(abs(source["s"][c]) + abs(source["s2"][c])) / 2 for c in range(4)])
    torch.testing.assert_close(BnScale().score(group(PRODUCER, SCALE, SECOND_SCALE), Context(source)), expected)


@pytest.mark.parametrize("how", ["none", "mean"])
def test_bn_scale_without_a_norm_takes_the_fallback_at_mean_one(how):
    source, found = draw(3), group(PRODUCER, READER)
    raw = L1(normalize="none")
    scores = BnScale(fallback=raw, normalize=how).score(found, Context(source))
    expected = raw.score(found, Context(source))
    torch.testing.assert_close(scores, expected / expected.mean())


def test_bn_scale_without_a_norm_or_a_fallback_is_an_error():
    with pytest.raises(GroupError, match="Group 'g' has no norm scale, so bn_scale cannot score it"):
        BnScale(fallback=None).score(group(PRODUCER), Context(draw(0)))


@settings(max_examples=25, deadline=None)
@given(seeds, st.sampled_from(["sum_then_abs", "abs_then_sum", "square_then_sum"]), normalizations)
def test_taylor_sums_gradient_times_weight(seed, reduce, how):
    weights, gradients, members = draw(seed), draw(seed + 5000), (PRODUCER, READER, BIAS)
    del gradients["m"]
    expected = []
    for c in range(4):
        total = 0.0
        for w, g in zip(elements(weights, members, c), elements(gradients, members, c), strict=True):
            products = [a * b for a, b in zip(w, g, strict=True)]
            total += {
                "sum_then_abs": abs(sum(products)),
                "abs_then_sum": sum(abs(p) for p in products),
                "square_then_sum": sum(p * p for p in products),
            }[reduce]
        expected.append(total)
    scores = Taylor(reduce=reduce, normalize=how).score(group(*members, STATISTIC), Context(weights, gradients))
    torch.testing.assert_close(scores, divided(expected, how), rtol=1e-4, atol=1e-5)


def test_taylor_predicts_the_loss_without_a_unit_where_the_loss_is_linear():
    """For a loss that is linear in the reader, the score is exactly the change that removing the unit makes."""
    source = draw(7)
    slope = torch.randn(5, 4, 2, generator=torch.Generator().manual_seed(1))
    scores = Taylor().score(group(READER), Context(source, {"r": slope}))
    for c in range(4):
        without = source["r"].clone()
        without[:, c] = 0
        change = ((without - source["r"]) * slope).sum().abs()
        torch.testing.assert_close(scores[c], change)


def test_taylor_says_which_gradient_is_missing_or_foreign():
    weights = draw(0)
    with pytest.raises(GroupError, match="a member 'w' and the context has no gradient for it"):
        Taylor().score(group(PRODUCER), Context(weights, {}))
    with pytest.raises(GroupError, match=r"'w' has shape \(4, 3, 2\) and its gradient \(4, 3\)"):
        Taylor().score(group(PRODUCER), Context(weights, {"w": torch.zeros(4, 3)}))
    with pytest.raises(ConfigError, match="takes gradients and the context has none"):
        Taylor().score(group(PRODUCER), Context(weights))


def test_taylor_leaves_buffers_out():
    """A member of role other without a gradient is a buffer; a group of nothing else cannot be scored."""
    weights, buffer = draw(0), member("m", "other")
    gradients = {"w": torch.ones(4, 3, 2)}
    alone = Taylor().score(group(PRODUCER), Context(weights, gradients))
    torch.testing.assert_close(Taylor().score(group(PRODUCER, buffer), Context(weights, gradients)), alone)
    with pytest.raises(GroupError, match=r"Group 'g' has no member of roles .* with a gradient"):
        Taylor().score(group(buffer), Context(weights, gradients))


def test_random_depends_on_seed_and_name_but_not_on_order():
    groups = [group(name="a"), group(name="b"), group(name="c", size=9)]

    def scores(chosen, seed):
        return score_groups(chosen, Random(), Context({}, generator=torch.Generator().manual_seed(seed)))

    there, back = scores(groups, 0), scores(groups[::-1], 0)
    for name in "abc":
        assert torch.equal(there[name], back[name])
    assert not torch.equal(there["a"], there["b"])
    assert not torch.equal(there["a"], scores(groups, 1)["a"])
    assert all(((values >= 0) & (values < 1)).all() for values in there.values())


def test_random_is_spread_over_the_unit_interval():
    source = Context({}, generator=torch.Generator().manual_seed(0))
    values = Random().score(group(size=10_000), source)
    assert values.mean().item() == pytest.approx(0.5, abs=0.02)
    assert values.var().item() == pytest.approx(1 / 12, abs=0.005)


def test_random_without_a_generator_is_an_error():
    with pytest.raises(ConfigError, match="Random scores for group 'g' take a generator"):
        Random().score(group(), Context({}))


@settings(max_examples=25, deadline=None)
@given(seeds, normalizations)
def test_fpgm_sums_distances_to_all_other_units(seed, how):
    source, members = draw(seed), (PRODUCER, BIAS)
    rows = [list(chain.from_iterable(elements(source, members, c))) for c in range(4)]
    expected = [sum(math.dist(a, b) for b in rows) for a in rows]
    scores = GeometricMedian(roles=("producer", "bias"), normalize=how).score(group(*members, READER), Context(source))
    torch.testing.assert_close(scores, divided(expected, how))


def test_fpgm_drops_the_geometric_median():
    """Of points on a line, the middle one has the least sum of distances; also for near neighbours far from zero."""
    source = {"w": torch.tensor([0.0, 10.0, 4.0, 5.0]) + 1000}
    assert GeometricMedian(normalize="none").score(group(PRODUCER), Context(source)).tolist() == [19, 21, 11, 11]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=4, max_size=4))
def test_lamp_is_the_share_of_the_units_that_are_no_smaller(values):
    squares = [float(v * v) for v in values]
    expected = [s / sum(other for other in squares if other >= s) if s else 0.0 for s in squares]
    scores = Lamp().score(group(PRODUCER), Context({"w": torch.tensor(values).float()}))
    torch.testing.assert_close(scores, torch.tensor(expected))


def slow_elimination(rows):
    """Look at all pairs anew each time."""

    def norm(c):
        return math.sqrt(sum(v * v for v in rows[c]))

    def cosine(c, d):
        if not norm(c) or not norm(d):
            return 1.0
        return sum(a * b for a, b in zip(rows[c], rows[d], strict=True)) / norm(c) / norm(d)

    left, scores = list(range(len(rows))), [2.0] * len(rows)
    while len(left) > 1:
        c, d = max(((c, d) for c in left for d in left if c < d), key=lambda pair: cosine(*pair))
        gone = c if norm(c) < norm(d) else d
        scores[gone] = 1 - cosine(c, d)
        left.remove(gone)
    return scores


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 9))
def test_elimination_drops_one_of_the_most_alike_pair_at_a_time(seed, n):
    rows = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(elimination_scores(rows @ rows.T), torch.tensor(slow_elimination(rows.tolist())))


def test_of_copies_one_stays():
    """Three copies of one unit and a fourth: two copies score 0, the largest stays to the end."""
    source = {"w": torch.tensor([[1.0, 1.0], [3.0, 3.0], [2.0, 2.0], [1.0, -1.0]])}
    scores = Cosine().score(group(PRODUCER), Context(source))
    torch.testing.assert_close(scores, torch.tensor([0.0, 2.0, 0.0, 1.0]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("criterion", [GeometricMedian(), Cosine(), Lamp(roles=("producer",))], ids=str)
def test_a_group_without_the_roles_is_an_error(criterion):
    with pytest.raises(GroupError, match="Group 'g' has no member of roles producer; it has bias, reader"):
        criterion.score(group(READER, BIAS), Context(draw(0)))
