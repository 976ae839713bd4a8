"""The law of composition: random networks × random steps in a legal order save, load and compute the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import nn

import secateur
from secateur.allocate import Budget
from secateur.coding import bake, codings_of, settle_
from secateur.compression import check_weights
from secateur.edits import Edits
from secateur.errors import ConfigError, PlanError
from secateur.measure import size_bytes
from secateur.planning import PruneConfig
from secateur.specs import to_spec
from secateur.steps import (
    STEPS,
    Activate,
    Context,
    Drop,
    Factorize,
    Finetune,
    Mix,
    Prune,
    Quantize,
    QuantizeInputs,
    Round,
    Share,
    Sparsify,
    Step,
    Words,
)
from secateur.steps.order import check_order

from .networks import Program, build, programs
from .pruned import run
from .settings import some

WAYS: list[Step] = [
    Prune(budget=Budget(width=0.5), prune=PruneConfig(criterion="random")),
    Prune(budget=Budget(width=0.7)),
    Drop(n=1, by="last"),
    Factorize(energy=0.6, is_aware=False),
    Sparsify(sparsity=0.5),
    Sparsify(pattern="2:4"),
    Quantize(bits=4),
    Quantize(method="affine", bits=3, granularity="per_tensor", calibration="minmax"),
    Quantize(method="ternary"),
    Quantize(method="binary"),
    Share(n_values=4),
    Mix(bits=3.0),
    Mix(bits=2.0, has_units=False),
    QuantizeInputs(),
    QuantizeInputs(method="symmetric", bits=4, calibration="mse"),
    QuantizeInputs(per="batch"),
    QuantizeInputs(method="symmetric", per="token"),
    Round(),
    Activate(function="threshold?value=0.01"),
    Words(by="random"),
]


def is_legal(steps: list[Step]) -> bool:
    try:
        check_order(steps, has_labels=False)
    except ConfigError:
        return False
    return True


@st.composite
def orders(draw: st.DrawFn) -> list[Step]:
    """Up to four steps, each of which may follow the ones before it."""
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 4))):
        if fitting := [step for step in WAYS if is_legal([*steps, step])]:
            steps.append(draw(st.sampled_from(fitting)))
    return steps


def carry_out(model: Any, inputs: Any, steps: list[Step]) -> tuple[Any, Edits]:
    """Each step in turn; one that finds nothing to do in this network says so, and is left out."""
    context = Context(dense=model, inputs=lambda n: inputs, calibration=lambda: [inputs])
    current, edits = model, Edits(inputs=to_spec(inputs))
    for step in steps:
        try:
            done = step.run(current, context)
        except (ConfigError, PlanError):
            continue
        settle_(done.model)
        current, edits = done.model.eval(), edits if done.edit is None else edits.then(done.edit)
    return current, edits


def same_state(one: nn.Module, two: nn.Module) -> bool:
    state, found = one.state_dict(), two.state_dict()
    return state.keys() == found.keys() and all(torch.equal(t, found[key]) for key, t in state.items())


@pytest.mark.slow
@given(programs(), orders())
@example(Program(start="vector"), [WAYS[0], WAYS[4], WAYS[6]])
@some(30)
def test_steps_in_any_legal_order_save_load_and_compute_the_same(program: Program, steps: list[Step]) -> None:
    model, inputs = build(program)
    before = [t.clone() for t in run(model, inputs)]
    small, edits = carry_out(model, inputs, steps)
    assert all(map(torch.equal, before, run(model, inputs))), "the dense network was changed"
    check_weights(small)
    with tempfile.TemporaryDirectory() as there:
        folder = secateur.save(small, Path(there) / "small", plan=edits)
        assert (folder / "model.safetensors").stat().st_size == size_bytes(small)
        again = secateur.load(folder, lambda: build(program)[0])
        compact = secateur.save(small, Path(there) / "compact", plan=edits, is_compact=True)
        assert same_state(secateur.load(compact, lambda: build(program)[0]), again)
    assert same_state(small, again)
    expected = run(small, inputs)  # kernels add in an order that depends on strides, of axes of length 1 too
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-14) for a, b in zip(expected, run(again, inputs), strict=True))
    plain = run(bake(small), inputs)
    assert all(torch.allclose(a, b) for a, b in zip(expected, plain, strict=True))
    assert {k: [c.kind for c in s] for k, s in codings_of(again).items()} == {
        k: [c.kind for c in s] for k, s in codings_of(small).items()
    }


def test_every_step_has_its_part_in_the_law() -> None:
    assert {step.name for step in WAYS} | {Finetune.name} == set(STEPS)


@pytest.mark.parametrize("first", sorted(STEPS))
def test_what_each_step_leaves_decides_what_may_follow(first: str) -> None:
    """The slow way round: a pair is legal where nothing that the first leaves is missing from what the second takes."""
    for one in (step for step in WAYS if step.name == first):
        for two in WAYS:
            assert is_legal([one, two]) == (set(one.leaves) <= set(two.accepts))
