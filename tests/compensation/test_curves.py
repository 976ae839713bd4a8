"""Error curves: their shape on random networks, and what is measured against the same done by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.laws import networks
from tests.laws.pruned import Pristine
from tests.laws.settings import some
from tests.test_program import others
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from secateur.compensation.curves import error_curves
from secateur.criteria import Elimination


@some(15)
@given(networks.programs(), st.sampled_from(["kl", "mse"]), st.sampled_from([(), (0.3, 0.7)]))
def test_errors_rise_as_groups_get_narrower(network: networks.Program, distance: str, levels: tuple[float, ...]):
    model, inputs = networks.build(network)
    before = Pristine.of(model)
    graph = secateur.trace(model, inputs)
    found = error_curves(model, [others(inputs, i) for i in range(3)], Elimination(distance=distance, levels=levels))
    before.check(model)
    assert {g.name for g in graph.prunable} == found.curves.keys() | found.skipped.keys()
    assert not found.curves.keys() & found.skipped.keys()
    for group in graph.prunable:
        assert all((group.name in found.curves) == (other in found.curves) for other in group.tied_to)
        if (curve := found.curves.get(group.name)) is not None:
            assert len(curve.order) == group.size
            assert curve.errors[-1] == 0
            assert bool((curve.errors.diff() <= 1e-9 * curve.errors[0]).all())


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(inplace=True), nn.Linear(8, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)
    )


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(16, 3))


def rows_of(model: nn.Module, x: Tensor) -> Tensor:
    """What the third module reads, a row for each position of its output."""
    hidden = model[:2](x)
    return hidden if hidden.dim() == 2 else F.unfold(hidden, 3).transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(("build", "shape", "window"), [(mlp, (16, 5), 1), (convolutional, (16, 2, 6, 6), 9)])
@pytest.mark.parametrize("distance", ["kl", "mse"])
def test_a_measured_error_is_that_of_the_network_solved_for_by_hand(build, shape, window: int, distance: str):
    torch.manual_seed(0)
    model = build().double().eval()
    batches = [torch.randn(shape, dtype=torch.float64) for _ in range(6)]
    config = Elimination(distance=distance, levels=(0.25, 0.5, 0.75), n_probe=32)
    curve = error_curves(model, batches, config).curves["0 channels" if window > 1 else "0 features"]
    with torch.no_grad():
        gram = sum(rows_of(model, x).T @ rows_of(model, x) for x in batches)
        gram += 1e-3 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        weight = model[2].weight.flatten(1)
        for k in (2, 4, 6):
            left = torch.cat([torch.arange(window) + window * unit for unit in curve.order[:k]])
            solved = torch.zeros_like(weight)
            solved[:, left] = weight @ gram[:, left] @ torch.linalg.inv(gram[left][:, left])
            small = copy.deepcopy(model)
            small[2].weight.copy_(solved.view_as(small[2].weight))
            errors = []
            for x in batches[:2]:  # 32 samples
                dense, other = model(x), small(x)
                if distance == "kl":
                    kl = F.kl_div(other.log_softmax(1), dense.log_softmax(1), log_target=True, reduction="batchmean")
                    errors.append(float(kl))
                else:
                    errors.append(float((dense - other).square().mean() / dense.var(correction=0)))
            assert float(curve.errors[k]) == pytest.approx(sum(errors) / 2, rel=1e-6)


class TwoOutputs(nn.Module):
    """A second head that the first output, which distances are taken of, does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.extra = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x).tanh()
        return self.head(x), self.extra(x)


def test_a_reader_that_the_output_ignores_costs_nothing():
    torch.manual_seed(0)
    model = TwoOutputs().eval()
    curve = error_curves(model, torch.randn(64, 4).split(16)).curves["body features"]
    assert float(curve.errors[0]) > 0


class Skipped(nn.Module):
    """Groups that something other than a weight that can be solved for reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.b = nn.Conv1d(2, 4, 1), nn.ConvTranspose1d(4, 6, 2), nn.Conv1d(6, 6, 1)
        self.key, self.query = nn.Conv1d(6, 4, 1), nn.Conv1d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.up(self.a(x)))
        return self.query(x).transpose(1, 2) @ self.key(x)


def test_groups_that_other_operators_read_are_listed_with_them():
    found = error_curves(Skipped().eval(), torch.randn(8, 2, 5).split(4), Elimination(distance="mse"))
    assert found.curves.keys() == {"up channels", "b channels"}
    assert "aten.convolution.default in 'up'" in found.skipped["a channels"]
    assert found.skipped["a channels"].endswith("transposed convolution")
    (other,) = found.skipped.keys() - {"a channels"}
    assert "aten.bmm.default" in found.skipped[other]
    assert found.skipped[other].endswith("no weight to solve for")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_about_the_same_curve(dtype: torch.dtype):
    torch.manual_seed(0)
    model = mlp().eval()
    batches = [20 * x for x in torch.randn(4096, 5).split(1024)]
    config = Elimination(distance="mse")
    expected = error_curves(model, batches, config).curves["0 features"].errors
    found = error_curves(model.to(dtype), [b.to(dtype) for b in batches], config).curves["0 features"].errors
    torch.testing.assert_close(found[2:7], expected[2:7], rtol=0.5, atol=0)


def test_equal_seeds_give_equal_curves_and_progress_is_told():
    torch.manual_seed(0)
    model, told = mlp().eval(), []
    batches = torch.randn(64, 5).split(16)
    one = error_curves(model, batches, progress=lambda i, n: told.append((i, n)))
    torch.manual_seed(1)
    two = error_curves(model, iter(batches))
    assert told == [(1, 2), (2, 2)]
    assert all(torch.equal(one.curves[name].errors, two.curves[name].errors) for name in one.curves)
