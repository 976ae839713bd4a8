"""What every criterion promises, whatever it computes; and how results, names and settings are checked."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from typing import ClassVar

import pytest
import torch

from secateur.criteria import (
    CRITERIA,
    KL,
    L1,
    L2,
    ActivationCosine,
    ActivationMean,
    Activity,
    Apoz,
    BnScale,
    Context,
    Cosine,
    Criterion,
    CurveCriterion,
    Fisher,
    FunctionCriterion,
    GeometricMedian,
    HRank,
    KLFisher,
    Lamp,
    Obd,
    Obs,
    Random,
    Taylor,
    TaylorActivation,
    TaylorSecond,
    Wanda,
    from_dict,
    make_criterion,
    needs_of,
    score_groups,
    to_dict,
)
from secateur.criteria.base import NEEDS
from secateur.dims.groups import Group, Member
from secateur.errors import ConfigError, GroupError, RegistryError

CASES = [
    Random(),
    L1(),
    L2(),
    L2(roles=("producer",), normalize="none"),
    BnScale(),
    BnScale(fallback=Taylor(reduce="abs_then_sum"), normalize="mean"),
    Taylor(),
    Taylor(reduce="abs_then_sum", normalize="max"),
    Taylor(reduce="square_then_sum", roles=("producer", "bias")),
    GeometricMedian(),
    GeometricMedian(roles=("producer", "reader", "scale"), normalize="none"),
    Lamp(),
    Cosine(),
    ActivationMean(),
    ActivationMean(normalize="none"),
    Apoz(),
    ActivationCosine(),
    HRank(),
    HRank(fallback=None),
    Wanda(),
    TaylorActivation(),
    TaylorSecond(),
    Fisher(),
    Obd(),
    Obs(),
    Obs(damping=1e-4),
    KL(),
    KLFisher(),
]


def conv_group(name="conv", frozen_reason=None):
    """Six channels: a convolution with bias and norm, read by a linear layer after one other feature."""
    members = (
        Member("conv.weight", 0, "producer", size=6),
        Member("conv.bias", 0, "bias", size=6),
        Member("bn.weight", 0, "scale", size=6),
        Member("bn.bias", 0, "shift", size=6),
        Member("bn.running_mean", 0, "statistic", size=6),
        Member("bn.running_var", 0, "statistic", size=6),
        Member("fc.weight", 1, "reader", size=6, offset=1),
    )
    return Group(name, "channels", 6, members, frozen_reason)


def tensors(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"conv.weight": (6, 2, 3, 3), "fc.weight": (4, 7)} | dict.fromkeys(
        ("conv.bias", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"), (6,)
    )
    return {key: torch.randn(shape, generator=generator).to(dtype) for key, shape in shapes.items()}


def context(dtype=torch.float32):
    """All that any criterion may need, about the six channels of `conv_group`."""
    gradients = {key: value for key, value in tensors(1).items() if "running" not in key}
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(2, 20, 6, generator=generator)
    row = values[0].abs()
    return Context(
        tensors(0, dtype),
        gradients,
        torch.Generator().manual_seed(0),
        squared_gradients={key: value.square() for key, value in gradients.items()},
        gates={"conv": values[0]},
        model_gates={"conv": values[1]},
        activity={"conv": Activity(mean_abs=row[0], nonzero=row[1] / row[1].max(), rms=row[2])},
        ranks={"conv": row[3] / row[3].max()},
        products={"conv": (values[0].T @ values[0]).double()},
        divergences={"conv": row[4]},
    )


def changed(source, tensor_change, unit_change):
    """The same context with every tensor of the model, and every axis of units of what was measured, changed."""

    def of_units(value):
        if isinstance(value, Activity):
            return Activity(*(unit_change(part, -1) for part in (value.mean_abs, value.nonzero, value.rms)))
        value = unit_change(value, -1)
        return unit_change(value, 0) if value.dtype == torch.float64 else value  # products have two such axes

    measured = ("gates", "model_gates", "activity", "ranks", "products", "divergences")
    return replace(
        source,
        tensors=tensor_change(source.tensors),
        gradients=tensor_change(source.gradients),
        squared_gradients=tensor_change(source.squared_gradients),
        **{name: {"conv": of_units(getattr(source, name)["conv"])} for name in measured},
    )


def permuted(source, order):
    """Reorder the six channels in every tensor."""
    axes = dict.fromkeys(source, 0) | {"fc.weight": 1}
    rows = {key: torch.cat([torch.tensor([0]), order + 1]) if key == "fc.weight" else order for key in source}
    return {key: value.index_select(axes[key], rows[key]) for key, value in source.items()}


def test_every_registered_criterion_has_a_case():
    of_units = {kind for kind in CRITERIA.values() if not issubclass(kind, CurveCriterion)}
    assert {type(case) for case in CASES} == of_units  # those of whole groups: tests/compensation, tests/sensitivity
    assert {key: criterion.name for key, criterion in CRITERIA.items()} == {key: key for key in CRITERIA}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_scores_are_float32_finite_and_detached(case, dtype):
    source = context(dtype)
    for value in source.tensors.values():
        value.requires_grad_(True)
    (scores,) = score_groups([conv_group()], case, source).values()
    assert (scores.shape, scores.dtype, scores.requires_grad) == ((6,), torch.float32, False)
    assert torch.isfinite(scores).all()
    assert (scores >= 0).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_scoring_changes_nothing_and_repeats(case):
    source = context()
    before, state = {key: value.clone() for key, value in source.tensors.items()}, source.generator.get_state()
    first = case.score(conv_group(), source)
    torch.testing.assert_close(case.score(conv_group(), source), first, rtol=0, atol=0)
    torch.testing.assert_close(dict(source.tensors), before, rtol=0, atol=0)
    assert torch.equal(source.generator.get_state(), state)


@pytest.mark.parametrize("case", [case for case in CASES if not isinstance(case, Random)], ids=str)
def test_scores_follow_their_units(case):
    """Channels in another order have the same scores in that order."""
    source, order = context(), torch.tensor([3, 0, 5, 1, 4, 2])
    turned = changed(source, lambda t: permuted(t, order), lambda t, axis: t.index_select(axis, order))
    torch.testing.assert_close(case.score(conv_group(), turned), case.score(conv_group(), source)[order])


@pytest.mark.parametrize("case", [case for case in CASES if not isinstance(case, Random | GeometricMedian)], ids=str)
def test_a_unit_of_zeros_scores_lowest(case):
    source = context()

    def zeroed(of):
        found = {key: value.clone() for key, value in of.items()}
        for member in conv_group().members:
            if member.key in found:
                member.view(found[member.key])[2] = 0
        return found

    without = changed(source, zeroed, lambda t, axis: t.index_fill(axis, torch.tensor([2]), 0))
    scores = case.score(conv_group(), without)
    assert scores[2] == 0
    assert scores.argmin() == 2


@pytest.mark.parametrize("case", CASES, ids=str)
def test_criteria_round_trip_through_json(case):
    assert from_dict(json.loads(json.dumps(to_dict(case)))) == case
    assert from_dict({"name": case.name}) == type(case)()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_criteria_are_frozen_values(case):
    assert hash(case) == hash(from_dict(to_dict(case)))
    with pytest.raises(FrozenInstanceError):
        case.name = "other"


@pytest.mark.parametrize("key", ["conv.weight", "fc.weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(key, bad):
    source = tensors()
    source[key][2, 1] = bad
    with pytest.raises(GroupError, match=f"Criterion 'l2' on group 'conv': NaN or Inf in '{key}'. Repair"):
        score_groups([conv_group()], L2(), Context(source))


def test_gradients_that_are_not_finite_are_named():
    source = context()
    source.gradients["bn.weight"][0] = float("nan")
    with pytest.raises(GroupError, match=r"NaN or Inf in the gradient of 'bn\.weight'\."):
        score_groups([conv_group()], Taylor(), source)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda group, context: [1.0] * 6, "gave list. Return a tensor"),
        (lambda group, context: torch.zeros(6, 1), r"gave shape \(6, 1\)"),
        (lambda group, context: torch.zeros(5), r"gave shape \(5,\)\. Return one score per unit: \(6,\)"),
        (lambda group, context: torch.full((6,), torch.nan), "gave NaN or Inf though the weights are finite"),
        (lambda group, context: torch.zeros(6, dtype=torch.complex64), "gave torch.complex64"),
    ],
)
def test_results_of_functions_are_checked(function, text):
    with pytest.raises(GroupError, match=text):
        score_groups([conv_group()], make_criterion(function), context())


@dataclass(frozen=True, kw_only=True)
class Sloppy(Criterion):
    name: ClassVar[str] = "sloppy"

    def score(self, group, context):
        return torch.zeros(group.size, dtype=torch.float64)


def test_results_of_classes_are_float32():
    with pytest.raises(GroupError, match=r"gave torch\.float64\. Return float32 without grad"):
        score_groups([conv_group()], Sloppy(), context())


def test_a_function_is_a_criterion():
    """Integers become float32; the function sees the group and the context."""
    criterion = make_criterion(lambda group, context: torch.arange(group.size) * len(context.tensors))
    (scores,) = score_groups([conv_group()], criterion, context()).values()
    torch.testing.assert_close(scores, torch.arange(6.0) * 7)


def test_make_criterion_takes_names_and_criteria():
    assert make_criterion("bn_scale") == BnScale()
    assert make_criterion(L1(normalize="max")) == L1(normalize="max")


@pytest.mark.parametrize(
    ("spec", "error", "text"),
    [
        ("l0", RegistryError, "No criterion 'l0'. Known: activation_cosine, .*taylor"),
        (L2, ConfigError, r"L2 is a class\. Pass an instance, L2\(\)"),
        (0.5, ConfigError, r"0\.5 is no criterion"),
    ],
)
def test_other_specs_are_refused(spec, error, text):
    with pytest.raises(error, match=text):
        make_criterion(spec)


def test_frozen_groups_are_left_out():
    groups = [conv_group("free"), conv_group("out", frozen_reason="model output")]
    assert list(score_groups(groups, L2(), context())) == ["free"]


def test_two_groups_of_one_name_are_refused():
    with pytest.raises(GroupError, match="Two groups are called 'conv'"):
        score_groups([conv_group(), conv_group()], L2(), context())


def test_needs_reach_through_fields():
    assert needs_of(L2()) == frozenset()
    assert needs_of(BnScale(fallback=Taylor())) == {"gradients"}
    with pytest.raises(ConfigError, match="Criterion 'bn_scale' needs gradients and the context has none"):
        score_groups([conv_group()], BnScale(fallback=Taylor()), Context(tensors()))


@pytest.mark.parametrize(
    ("source", "group", "text"),
    [
        (Context({}), conv_group(), r"a member 'conv\.weight' and the context has no tensor for it"),
        (Context({key: value.to("meta") for key, value in tensors().items()}), conv_group(), "is on the meta device"),
        (
            Context(tensors()),
            Group("conv", "channels", 5, conv_group().members),
            r"'conv\.weight' has 6 units on axis 0; group 'conv' has 5",
        ),
    ],
)
def test_slices_that_do_not_fit_are_refused(source, group, text):
    with pytest.raises(GroupError, match=text):
        source.slices(group)


def test_slices_have_one_row_per_unit():
    source, group = context(), conv_group()
    assert [tuple(rows.shape) for rows in source.slices(group, ("producer", "reader"))] == [(6, 18), (6, 4)]
    torch.testing.assert_close(source.slices(group, ("reader",))[0], source.tensors["fc.weight"][:, 1:].T)


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (
            {"name": "l2", "power": 3, "p": 1},
            ConfigError,
            "Criterion 'l2' has no field 'power', 'p'. Known: roles, norm",
        ),
        ({"name": "random", "seed": 3}, ConfigError, "Known: none, only name"),
        ({"roles": []}, ConfigError, "does not describe a criterion"),
        ([], ConfigError, "does not describe a criterion"),
        ({"name": "l9"}, RegistryError, "No criterion 'l9'"),
        (
            {"name": "l2", "normalize": "median"},
            ConfigError,
            "normalize='median' is unknown. Choose one of: none, mean",
        ),
        ({"name": "l2", "roles": []}, ConfigError, r"roles=\(\) is not a tuple of roles"),
        ({"name": "l2", "roles": ["writer"]}, ConfigError, "roles='writer' is unknown"),
        ({"name": "l2", "roles": "producer"}, ConfigError, "roles='producer' is not a tuple"),
        ({"name": "taylor", "reduce": "max"}, ConfigError, "reduce='max' is unknown"),
        ({"name": "bn_scale", "fallback": "l2"}, ConfigError, "fallback='l2' is not a criterion"),
    ],
)
def test_from_dict_is_strict(data, error, text):
    with pytest.raises(error, match=text):
        from_dict(data)


@pytest.mark.parametrize("criterion", [FunctionCriterion(function=lambda group, context: torch.ones(6)), Sloppy()])
def test_what_is_not_registered_cannot_be_saved(criterion):
    with pytest.raises(ConfigError, match=r"cannot be saved: .* is not registered under that name"):
        to_dict(criterion)


def test_the_context_of_a_model_knows_what_was_learned():
    model = torch.nn.BatchNorm1d(6)
    model.table = torch.ones(6)
    source = Context.of(model, generator=torch.Generator())
    assert source.tensors["weight"] is model.weight
    assert source.constants == {"running_mean", "running_var", "num_batches_tracked", "table"}


def test_constants_do_not_count_as_weights():
    """A table that multiplies looks like a scale; only statistics are given to those who ask for them."""
    members = (
        Member("w", 0, "producer", size=2),
        Member("table", 0, "scale", size=2),
        Member("mean", 0, "statistic", size=2),
    )
    found = Group("g", "channels", 2, members)
    values = {"w": torch.tensor([[1.0], [2.0]]), "table": torch.full((2,), 9.0), "mean": torch.full((2,), 5.0)}
    source = Context(values, {"w": torch.ones(2, 1)}, constants=frozenset({"table", "mean"}))
    assert L1(normalize="none").score(found, source).tolist() == [1, 2]
    assert Taylor().score(found, source).tolist() == [1, 2]
    torch.testing.assert_close(BnScale().score(found, source), torch.tensor([2 / 3, 4 / 3]))
    assert [rows[0].item() for rows in source.slices(found, ("statistic",))] == [5]
    assert len(source.slices(found)) == 3


def test_every_need_is_a_field_of_the_context_and_is_asked_for_by_name():
    assert set(NEEDS) <= {field.name for field in fields(Context)}
    for case in CASES:
        for need in case.needs:
            with pytest.raises(ConfigError, match=f"needs {need} and the context has none"):
                score_groups([conv_group()], case, replace(context(), **{need: None}))


@pytest.mark.parametrize("case", [case for case in CASES if case.needs - {"gradients", "squared_gradients"}], ids=str)
def test_a_group_that_was_not_measured_is_named(case):
    other = conv_group("other")
    if getattr(case, "fallback", None) is not None:
        assert len(case.score(other, context())) == 6
        return
    with pytest.raises(GroupError, match=r"[gG]roup 'other'"):
        case.score(other, context())


def test_measured_values_that_are_not_finite_are_named():
    source = context()
    source.gates["conv"][3, 4] = torch.nan
    with pytest.raises(GroupError, match="Criterion 'fisher' on group 'conv' gave NaN or Inf though the weights are"):
        score_groups([conv_group()], Fisher(), source)
