"""Laws of pruning, on random networks × random budgets × random scores."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import secateur
from secateur import Plan, surgery
from secateur.dims.groups import Group
from secateur.tensors import named_tensors

from .networks import build
from .pruned import Case, Pristine, Pruned, cases, largest_difference, prune, run, zeroed
from .settings import some


def runs_forward_and_backward(p: Pruned) -> None:
    """Every parameter that had a finite gradient has one of the new shape."""
    grads = []
    for model in (p.model, p.small):
        model.zero_grad()
        outputs = [t for t in run(model, p.inputs) if t.requires_grad]
        sum(t.square().sum() for t in outputs).backward()
        grads.append({key: q.grad for key, q in model.named_parameters() if q.grad is not None})
        model.zero_grad()
    dense, small = grads
    assert dense.keys() == small.keys()
    for key, q in p.small.named_parameters():
        if key in small:
            assert small[key].shape == q.shape
            assert small[key].isfinite().all() or not dense[key].isfinite().all()


def is_verified(p: Pruned) -> None:
    assert p.report.is_ok, str(p.report)
    assert p.report.max_difference is not None
    assert p.report.max_difference < 1e-9


def dropped_units_had_no_say(p: Pruned) -> None:
    """The law, checked without the verifier: zero the dropped slices of the original's parameters and run it."""
    normalised = p.report.renormalised or any(g.normalised_by for g in p.plan.groups)
    if normalised or not all(getattr(m, "zeroing_is_exact", True) for m in p.model.modules()):
        return
    with torch.no_grad():
        assert largest_difference(run(zeroed(p.model, p.plan), p.inputs), run(p.small, p.inputs)) < 1e-9


def shapes_are_as_predicted(p: Pruned) -> None:
    """Shapes, kept values, parameter count and cost are what the plan says; other tensors are whole."""
    dense, small = named_tensors(p.model), named_tensors(p.small)
    assert dense.keys() == small.keys()
    for key, t in dense.items():
        expected = t.detach()
        for axis, keep in enumerate(p.plan.keep(key) if key in p.plan.tensors else ()):
            expected = expected if keep is None else expected.index_select(axis, keep)
        assert torch.equal(small[key], expected)
        if key in p.plan.tensors:
            assert p.plan.shape_before(key) == tuple(t.shape)
            assert p.plan.shape_after(key) == tuple(small[key].shape)
        assert type(small[key]) is type(t)
        assert small[key].requires_grad == t.requires_grad


def cost_is_as_predicted(p: Pruned) -> None:
    retraced = secateur.trace(p.small, p.inputs)
    counts = {g.name: len(g.keep) for g in p.plan.groups}
    assert p.plan.cost_after == retraced.cost() == p.graph.cost(counts)
    assert p.plan.cost_before == p.graph.cost()
    assert p.plan.cost_after.params == sum(q.numel() for q in p.small.parameters())
    assert p.plan.cost_after.macs <= p.plan.cost_before.macs


def ties_of_tensors_stay(p: Pruned) -> None:
    """What was one object is one object, and nothing is shared with the original."""
    dense, small = named_tensors(p.model), named_tensors(p.small)
    for a in dense:
        for b in dense:
            assert (dense[a] is dense[b]) == (small[a] is small[b])
    theirs = {t.untyped_storage().data_ptr() for t in dense.values() if t.numel()}
    assert not theirs & {t.untyped_storage().data_ptr() for t in small.values() if t.numel()}


def numbers_of_layers_follow(p: Pruned) -> None:
    """What a layer says about itself is what its weight says."""
    for module in p.small.modules():
        if isinstance(module, torch.nn.Linear):
            assert (module.out_features, module.in_features) == tuple(module.weight.shape)
        elif isinstance(module, torch.nn.Conv2d):
            shape = (module.out_channels, module.in_channels // module.groups)
            assert shape == tuple(module.weight.shape[:2])
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert module.num_features == len(module.running_mean)


def tied_groups_keep_equal_fractions(p: Pruned) -> None:
    kept = {g.name: len(g.keep) for g in p.plan.groups}
    for group in p.graph.prunable:
        for other in group.tied_to:
            sizes = {g.name: g.size for g in p.graph.groups}
            if group.name in kept and other in kept:
                assert kept[group.name] * sizes[other] == kept[other] * sizes[group.name]


def original_is_untouched(p: Pruned) -> None:
    p.before.check(p.model, random=False)


def survives_json(p: Pruned) -> None:
    text = p.plan.to_json()
    again = Plan.from_json(text)
    assert again == p.plan
    assert again.to_json() == text


LAWS = (
    is_verified,
    dropped_units_had_no_say,
    shapes_are_as_predicted,
    cost_is_as_predicted,
    runs_forward_and_backward,
    ties_of_tensors_stay,
    numbers_of_layers_follow,
    tied_groups_keep_equal_fractions,
    original_is_untouched,
    survives_json,
)


@some(32)
@given(cases())
def test_pruned_networks_obey_every_law(case: Case):
    pruned = prune(case)
    for law in LAWS if pruned is not None else ():
        law(pruned)


@some(9)
@given(cases())
def test_the_same_seed_gives_the_same_plan(case: Case):
    model, inputs = build(case.program)
    again, _ = build(case.program)
    one, two = case.plan(model, inputs), case.plan(again, inputs)
    assert one == two
    if one is not None:
        assert one.to_json() == two.to_json()


@some(9)
@given(cases())
def test_a_plan_that_keeps_everything_is_the_identity(case: Case):
    model, inputs = build(case.program)
    plan = replace(case, budget=("width", 1.0)).plan(model, inputs)
    if plan is None:
        return
    assert plan.is_empty
    assert plan.cost_after == plan.cost_before
    assert plan.attributes == ()
    small = secateur.apply(model, plan, inputs=inputs)
    dense, whole = model.state_dict(), small.state_dict()
    assert dense.keys() == whole.keys()
    assert all(torch.equal(dense[key], whole[key]) for key in dense)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(run(model, inputs), run(small, inputs), strict=True))


@some(9)
@given(cases(), st.sampled_from(["width", "macs", "params"]))
def test_a_smaller_budget_costs_no_more(case: Case, name: str):
    model, inputs = build(case.program)
    costs = []
    for fraction in (1.0, 0.8, 0.5, 0.2):
        plan = replace(case, budget=(name, fraction)).plan(model, inputs)
        if plan is None:
            return
        costs.append(plan.cost_after)
    measure = {"width": lambda c: c.params, "macs": lambda c: c.macs, "params": lambda c: c.params}[name]
    dense = measure(costs[0])
    # Where the next step is too coarse, another group goes on, and nesting gives way to meeting the budget.
    assert all(measure(b) <= measure(a) + 0.02 * dense for a, b in itertools.pairwise(costs))
    assert all(c.macs <= costs[0].macs and c.params <= costs[0].params for c in costs)


@some(9)
@given(cases())
def test_a_composed_plan_does_what_its_parts_do(case: Case):
    first = prune(case)
    if first is None:
        return
    second = replace(case, budget=("width", 0.7), seed=case.seed + 1).plan(first.small, first.inputs)
    if second is None:
        return
    twice = secateur.apply(first.small, second, inputs=first.inputs, verify=False)
    whole = secateur.compose(first.plan, second)
    once = secateur.apply(first.model, whole, inputs=first.inputs)
    a, b = twice.state_dict(), once.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert Plan.from_json(whole.to_json()) == whole
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(run(twice, first.inputs), run(once, first.inputs), strict=True))


@some(15)
@given(cases())
def test_tracing_leaves_no_mark_and_reads_no_values(case: Case):
    """On the meta device, in training mode or not, the groups are the same; the model stays as it is."""
    model, inputs = build(case.program)
    for module in list(model.modules())[::2]:
        module.train()
    before = Pristine.of(model)
    graph = secateur.trace(model, inputs)
    before.check(model)
    meta = on_meta(model)
    for other in (secateur.trace(meta, inputs), secateur.trace(meta, pytree.tree_map_only(Tensor, _to_meta, inputs))):
        assert [_identity(g) for g in other.groups] == [_identity(g) for g in graph.groups]
        assert other.cost() == graph.cost()
    assert graph.cost().params == sum(p.numel() for p in model.parameters())
    assert str(graph)


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without data; `model.to("meta")` would untie tied parameters."""
    twins: dict[int, Tensor] = {}
    for t in named_tensors(model).values():
        data = torch.empty_like(t, device="meta")
        twins[id(t)] = nn.Parameter(data) if isinstance(t, nn.Parameter) else data
    return copy.deepcopy(model, dict(twins))


def _to_meta(t: Tensor) -> Tensor:
    return t.to("meta")


def _identity(g: Group) -> tuple[object, ...]:
    return g.name, g.kind, g.size, g.members, g.frozen_reason is None, g.normalised_by, g.tied_to


@some(15)
@given(cases())
def test_planning_leaves_no_mark(case: Case):
    model, inputs = build(case.program)
    model.train()
    before = Pristine.of(model)
    case.plan(model, inputs)
    before.check(model)


@some(10)
@given(cases(), st.sampled_from(["sgd", "adam", "amsgrad"]))
def test_in_place_surgery_equals_the_copy_and_takes_the_optimizer_along(case: Case, name: str):
    model, inputs = build(case.program)
    optimizer = _optimizer(name, model)
    for _ in range(2):
        _step(model, inputs, optimizer)
    sum(t.sum() for t in run(model, inputs) if t.requires_grad).backward()
    plan = case.plan(model, inputs)
    if plan is None:
        return
    dense = copy.deepcopy(model)
    grads = {key: p.grad for key, p in model.named_parameters()}
    states = {key: dict(optimizer.state[p]) for key, p in model.named_parameters()}
    objects = {key: id(t) for key, t in model.named_parameters()}
    small = secateur.apply(model, plan, inputs=inputs)
    assert secateur.apply_(model, plan, inputs=inputs, optimizer=optimizer) is None
    assert {key: id(t) for key, t in model.named_parameters()} == objects
    a, b = small.state_dict(), model.state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    with torch.no_grad():
        assert all(torch.equal(x, y) for x, y in zip(run(small, inputs), run(model, inputs), strict=True))
    for key, p in model.named_parameters():
        _is_slice(p.grad, grads[key], plan, key)
        assert optimizer.state[p].keys() == states[key].keys()
        for entry, old in states[key].items():
            _is_slice(optimizer.state[p][entry], old, plan, key)
    report = secateur.verify(dense, model, plan, inputs)
    assert report.is_ok, str(report)
    _step(model, inputs, optimizer)
    assert all(p.isfinite().all() for p in model.parameters())


def _optimizer(name: str, model: nn.Module) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    return torch.optim.Adam(model.parameters(), lr=1e-3, amsgrad=name == "amsgrad")


def _step(model: nn.Module, inputs: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    sum(t.square().mean() for t in run(model, inputs) if t.requires_grad).backward()
    optimizer.step()


def _is_slice(new: Any, old: Any, plan: Plan, key: str) -> None:
    if not isinstance(old, Tensor):
        assert new == old
        return
    expected = old
    if old.dim():
        for axis, keep in enumerate(plan.keep(key) if key in plan.tensors else ()):
            expected = expected if keep is None else expected.index_select(axis, keep)
    assert torch.equal(new, expected)


class Interrupted(BaseException):
    """As Ctrl-C: no Exception."""


@some(10)
@given(cases(), st.integers(0, 12))
def test_in_place_surgery_is_all_or_nothing(case: Case, after: int):
    """Interrupted at any change, model and optimizer are as they were."""
    model, inputs = build(case.program)
    optimizer = _optimizer("adam", model)
    _step(model, inputs, optimizer)
    plan = case.plan(model, inputs)
    if plan is None or plan.is_empty:
        return
    before = Pristine.of(model)
    grads = {key: None if p.grad is None else p.grad.clone() for key, p in model.named_parameters()}
    states = {key: {k: v.clone() for k, v in optimizer.state[p].items()} for key, p in model.named_parameters()}
    left = after

    def fail_later(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                left = 10**9
                raise Interrupted
            return original(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(surgery, "_cut", fail_later(surgery._cut))
        patch.setattr(surgery, "set_number", fail_later(surgery.set_number))
        try:
            secateur.apply_(model, plan, inputs=inputs, optimizer=optimizer, verify=False)
        except Interrupted:
            pass
        else:
            return
    before.check(model)
    for key, p in model.named_parameters():
        assert (p.grad is None) == (grads[key] is None)
        assert p.grad is None or torch.equal(p.grad, grads[key])
        assert all(torch.equal(optimizer.state[p][k], v) for k, v in states[key].items())
