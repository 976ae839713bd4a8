"""Compensation as a whole: what can be made up for is, nothing gets worse, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.laws import networks
from tests.laws.pruned import Pristine, largest_difference, run
from tests.laws.settings import some
from tests.test_program import REAL, others
from torch import Tensor, nn

import secateur
from secateur import Plan
from secateur.compensation import CompensateConfig, ReconstructConfig, compensate_
from secateur.compensation.curves import error_curves
from secateur.criteria import Elimination
from secateur.errors import DataError, PlanError

from .duplicates import lower_part, repeat_

CLOSED = CompensateConfig(reconstruct=None)


def outputs(model: nn.Module, batches: list[Any]) -> list[Tensor]:
    with torch.no_grad():
        return [t for x in batches for t in run(model, x)]


def read_by_weights(model: nn.Module, batches: list[Any]) -> list[Any]:
    """The groups that only weights read, and that no norm averages over."""
    curves = error_curves(model, batches, Elimination(levels=(), distance="mse")).curves
    groups = secateur.trace(model, batches[0]).prunable
    found = [g for g in groups if g.name in curves and not g.normalised_by and g.size % 2 == 0]
    names = {g.name for g in found}
    return [g for g in found if names.issuperset(g.tied_to)]


def recovered(model: nn.Module, batches: list[Any]) -> tuple[list[str], float, float]:
    """The kinds of the groups that lost a half, and how far the network is from the dense one before and after."""
    groups = read_by_weights(model, batches)
    if not groups:
        return [], 0.0, 0.0
    repeat_(model, groups)
    plan = lower_part(model, batches[0], [g.name for g in groups])
    small = secateur.apply(model, plan)
    dense = outputs(model, batches)
    before = largest_difference(dense, outputs(small, batches))
    pristine = Pristine.of(model)
    compensate_(model, small, plan, batches, CLOSED)
    pristine.check(model)
    return [g.kind for g in groups], before, largest_difference(dense, outputs(small, batches))


@pytest.mark.slow
@some(30)
@given(networks.programs(), st.integers(0, 99))
def test_what_repeats_is_made_up_for_in_random_networks(network: networks.Program, seed: int):
    flat = network.to_vector in ("flatten", "view")  # more features than the few samples tell apart
    model, inputs = networks.build(replace(network, batch=24, to_vector="mean" if flat else network.to_vector))
    _, _, after = recovered(model, [others(inputs, seed + i) for i in range(6)])
    assert after < 1e-3


def behind_convolution(reader: nn.Module, channels: int, *, norm: bool = False) -> nn.Module:
    after = [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)] if norm else [nn.ReLU()]
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), reader, *after, nn.Flatten(), nn.LazyLinear(3))


class Attention(nn.Module):
    """Grouped-query attention, or plain attention by hand, with an output projection without bias."""

    def __init__(self, *, is_by_hand: bool = False) -> None:
        super().__init__()
        self.is_by_hand = is_by_hand
        width = 8 if is_by_hand else 16
        self.q, self.k, self.v = nn.Linear(6, width), nn.Linear(6, 8), nn.Linear(6, 8)
        self.out = nn.Linear(width, 6, bias=False)
        self.key_dim, self.value_dim = 4, 4

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k = (t.view(b, n, -1, self.key_dim).transpose(1, 2) for t in (self.q(x), self.k(x)))
        v = self.v(x).view(b, n, -1, self.value_dim).transpose(1, 2)
        if self.is_by_hand:
            y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        else:
            y = nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return x + self.out(y.transpose(1, 2).reshape(b, n, -1))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(*w, bias=False) for w in ((6, 16), (6, 16), (16, 6)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class Residual(nn.Module):
    """A stream without norms: every block reads all of it and adds to it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 12)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


IMAGES, TOKENS, VECTORS = (16, 3, 7, 6), (16, 5, 6), (32, 6)
CASES = {
    "convolution": (lambda: behind_convolution(nn.Conv2d(8, 6, 3, padding=1), 6), IMAGES, {"channels"}),
    "strided": (lambda: behind_convolution(nn.Conv2d(8, 6, (3, 1), (2, 3), dilation=2), 6), IMAGES, {"channels"}),
    "grouped": (lambda: behind_convolution(nn.Conv2d(8, 6, 3, groups=2), 6), IMAGES, {"channels"}),
    "depthwise": (lambda: behind_convolution(nn.Conv2d(8, 8, 3, groups=8), 8), IMAGES, {"channels"}),
    "no bias, batch norm": (
        lambda: behind_convolution(nn.Conv2d(8, 6, 3, bias=False), 6, norm=True),
        IMAGES,
        {"channels"},
    ),
    "linear": (lambda: nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 3)), VECTORS, {"features"}),
    "no biases": (
        lambda: nn.Sequential(nn.Linear(6, 16, bias=False), nn.ReLU(), nn.Linear(16, 3, bias=False)),
        VECTORS,
        {"features"},
    ),
    "attention": (Attention, TOKENS, {"heads", "queries"}),
    "attention by hand": (lambda: Attention(is_by_hand=True), TOKENS, {"heads", "head_dim"}),
    "gated": (Gated, TOKENS, {"features"}),
    "residual": (Residual, VECTORS, {"features"}),
}


def case(name: str, dtype: torch.dtype = torch.float64, n: int = 8) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    make, shape, _ = CASES[name]
    model = make().eval()
    with torch.no_grad():
        model(torch.zeros(shape))
        networks.randomise_(model, torch.Generator().manual_seed(1))
    return model.to(dtype), [torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(n)]


@pytest.mark.parametrize("name", CASES)
def test_what_repeats_is_made_up_for(name: str):
    kinds, before, after = recovered(*case(name, n=24))
    assert CASES[name][2] <= set(kinds)
    assert after < 1e-3 < 1e-2 < before, (before, after)


def pruned(name: str, dtype: torch.dtype = torch.float64, width: float = 0.5) -> tuple[nn.Module, nn.Module, Plan, Any]:
    model, batches = case(name, dtype)
    groups = read_by_weights(model.double(), [b.double() for b in batches])
    plan = lower_part(model.to(dtype), batches[0], [g.name for g in groups], width)
    return model, secateur.apply(model, plan), plan, batches


def distance(model: nn.Module, small: nn.Module, batches: list[Any]) -> float:
    pairs = zip(outputs(model, batches), outputs(small, batches), strict=True)
    return sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("reconstruct", [None, ReconstructConfig(epochs=3)], ids=["closed form", "reconstructed"])
def test_nothing_gets_worse_on_the_calibration_data(name: str, reconstruct: ReconstructConfig | None):
    model, small, plan, batches = pruned(name)
    before = distance(model, small, batches)
    report = compensate_(model, small, plan, batches, CompensateConfig(reconstruct=reconstruct))
    assert distance(model, small, batches) < before
    assert all(0 <= r.after <= r.before + 1e-9 for r in report.layers)
    assert all(0 <= s.after <= s.before for s in report.segments)
    assert bool(report.segments) == (reconstruct is not None)
    assert f"{len(report.layers)} weights solved for again" in str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["convolution", "attention"])
def test_every_floating_dtype_is_solved_for_and_kept(name: str, dtype: torch.dtype):
    model, small, plan, batches = pruned(name, dtype)
    before = distance(model, small, batches)
    compensate_(model, small, plan, batches, CompensateConfig(reconstruct=ReconstructConfig(epochs=2)))
    assert distance(model, small, batches) < 0.8 * before
    assert all(p.dtype is dtype and p.isfinite().all() for p in small.parameters())


@pytest.mark.parametrize("name", CASES)
def test_an_empty_plan_changes_nothing(name: str):
    model, small, plan, batches = pruned(name, width=1.0)
    assert plan.is_empty
    before = Pristine.of(small)
    report = compensate_(model, small, plan, batches)
    before.check(small)
    assert report.layers == report.segments == ()


def test_equal_seeds_give_equal_weights_and_the_callers_randomness_is_left_alone():
    found = []
    for noise in range(2):
        model, small, plan, batches = pruned("convolution", torch.float32)
        torch.manual_seed(noise)
        state, dense = torch.get_rng_state(), Pristine.of(model)
        config = CompensateConfig(reconstruct=ReconstructConfig(epochs=2))
        told: list[tuple[int, int]] = []
        compensate_(model, small, plan, iter(batches), config, progress=lambda i, n, told=told: told.append((i, n)))
        assert torch.equal(state, torch.get_rng_state())
        dense.check(model)
        assert told == [(i + 1, 3) for i in range(3)]
        found.append(small.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_a_reconstruction_that_does_not_help_is_not_kept():
    """The closed form of a linear network is the best there is; steps that are far too large only lead away."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Linear(12, 12), nn.Linear(12, 3)).double().eval()
    batches = [torch.randn(32, 6, dtype=torch.float64) for _ in range(8)]
    groups = [g.name for g in read_by_weights(model, batches)]
    plan = lower_part(model, batches[0], groups, 0.75)
    one, two = secateur.apply(model, plan), secateur.apply(model, plan)
    for small, lr in ((one, 0.98), (two, 0.99)):
        config = CompensateConfig(reconstruct=ReconstructConfig(epochs=1, lr=lr))
        report = compensate_(model, small, plan, batches, config)
        assert report.segments
        assert all(s.after == s.before for s in report.segments)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_a_batch_norm_takes_the_shift_that_a_constant_unit_leaves():
    model, batches = case("no bias, batch norm")
    with torch.no_grad():
        model[0].weight[4:], model[0].bias[4:] = 0, 2.0
    plan = lower_part(model, batches[0], [next(g.name for g in secateur.trace(model, batches[0]).prunable)])
    small = secateur.apply(model, plan)
    kernel = small[2].weight.clone()
    compensate_(model, small, plan, batches, CLOSED)
    assert distance(model, small, batches) < 1e-12
    torch.testing.assert_close(small[2].weight, kernel)
    moved = model[2].weight[:, 4:].sum((1, 2, 3)) * 2
    (scale, offset), (scale_before, offset_before) = map(line, (small[3], model[3]))
    torch.testing.assert_close(scale, scale_before)
    torch.testing.assert_close(offset, offset_before + scale * moved)


def line(norm):
    """A batch norm in eval mode as y = scale * x + offset."""
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale, norm.bias - scale * norm.running_mean


def test_networks_that_do_not_belong_together_are_refused():
    model, small, plan, batches = pruned("linear")
    with pytest.raises(PlanError, match="Verify it against the plan first"):
        compensate_(model, nn.Sequential(small, nn.ReLU(), nn.ReLU()), plan, batches)


def test_batches_must_be_there_and_of_one_shape():
    model, small, plan, batches = pruned("linear")
    with pytest.raises(DataError, match="no calibration batches"):
        compensate_(model, small, plan, [])
    with pytest.raises(DataError, match="batches differ"):
        compensate_(model, small, plan, [batches[0], batches[0][:5], batches[0]])
    compensate_(model, small, plan, [*batches, batches[0][:5]])


@pytest.mark.parametrize("name", ["convolutions in place", "torch transformer", "vit", "swin", "bert"])
def test_real_networks_come_nearer_to_the_dense_one(name: str):
    torch.manual_seed(0)
    model, inputs = REAL[name]()
    model.eval()
    batches = [others(inputs, i) for i in range(8)]
    if isinstance(inputs, dict):
        batches = [{**inputs, "input_ids": b["input_ids"]} for b in batches]
    curves = error_curves(model, batches, Elimination(levels=(), distance="mse")).curves
    plan = lower_part(model, batches[0], curves.keys(), 0.75)
    assert not plan.is_empty
    small = secateur.apply(model, plan)
    before = distance(model, small, batches)
    report = compensate_(model, small, plan, batches, CompensateConfig(reconstruct=ReconstructConfig(epochs=2)))
    assert distance(model, small, batches) < before
    assert report.layers
    assert all(r.after < r.before for r in report.layers)
