"""Quantizers: how far they move a weight, what they store, what training and pruning do with them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import secateur
import secateur.quantize as q
from secateur.coding import attach_, codable, codings_of
from secateur.errors import ConfigError

GRANULARITIES = [q.PerTensor(), q.PerChannel(), q.PerGroup(9)]
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blocks(weight: Tensor, granularity: q.Granularity) -> list[Tensor]:
    """Slow and obvious: flat indices of the values that share a scale."""
    places = torch.arange(weight.numel()).reshape(weight.shape)
    if isinstance(granularity, q.PerTensor):
        return [places.flatten()]
    if isinstance(granularity, q.PerChannel):
        return [places.select(granularity.axis, i).flatten() for i in range(weight.shape[granularity.axis])]
    return [run for row in places.flatten(1) for run in row.split(granularity.group_size)]


@pytest.mark.parametrize("granularity", [*GRANULARITIES, q.PerChannel(axis=1)], ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_is_the_nearest_of_its_levels_and_at_most_half_a_step_away(
    granularity: q.Granularity, bits: int
) -> None:
    weight = normal(4, 3, 3, 3)
    coded = q.Symmetric.fit(weight, granularity, bits)(weight).detach().flatten()
    top = 2 ** (bits - 1) - 1
    for places in blocks(weight, granularity):
        values = weight.flatten()[places]
        scale = values.abs().max() / top
        levels = torch.arange(-top, top + 1) * scale
        nearest = levels[(values[:, None] - levels).abs().argmin(1)]
        torch.testing.assert_close(coded[places], nearest)
        assert bool(((coded[places] - values).abs() <= scale / 2 * (1 + 1e-5)).all())


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("shift", [-5.0, -1.0, 0.0, 0.5, 5.0])
def test_affine_holds_zero_and_is_at_most_half_a_step_away(granularity: q.Granularity, bits: int, shift: float) -> None:
    weight = normal(4, 3, 3, 3) + shift
    coding = q.Affine.fit(weight, granularity, bits)
    coded = coding(weight).detach()
    assert torch.equal(coding(torch.zeros_like(weight)), torch.zeros_like(weight))
    for places in blocks(weight, granularity):
        values = weight.flatten()[places]
        scale = (values.max().clamp_min(0) - values.min().clamp_max(0)) / (2**bits - 1)
        assert bool(((coded.flatten()[places] - values).abs() <= scale / 2 * (1 + 1e-4)).all())
        assert len(coded.flatten()[places].unique()) <= 2**bits


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_binary_has_the_best_scale_for_its_signs(granularity: q.Granularity) -> None:
    weight = normal(4, 3, 3, 3)
    coded = q.Binary.fit(weight, granularity)(weight).detach().flatten()
    for places in blocks(weight, granularity):
        values = weight.flatten()[places]
        signs = torch.where(values >= 0, 1.0, -1.0)
        best = torch.linalg.lstsq(signs[:, None], values[:, None]).solution[0, 0]
        torch.testing.assert_close(coded[places], best * signs)


@pytest.mark.parametrize("granularity", GRANULARITIES, ids=str)
def test_ternary_has_the_papers_threshold_and_the_best_scale_beyond_it(granularity: q.Granularity) -> None:
    weight = normal(4, 3, 3, 3)
    coded = q.Ternary.fit(weight, granularity)(weight).detach().flatten()
    for places in blocks(weight, granularity):
        values = weight.flatten()[places]
        beyond = values.abs() > 0.7 * values.abs().mean()
        expected = torch.where(beyond, values.sign() * values[beyond].abs().mean(), 0.0)
        torch.testing.assert_close(coded[places], expected)


@pytest.mark.parametrize("kind", [q.Binary, q.Ternary], ids=lambda kind: kind.kind)
def test_a_row_of_zeros_stays_zero_on_disk_too(kind: type[q.Quantizer]) -> None:
    """Such as an embedding's padding: tiny numbers in its place would make subnormal products, which are slow."""
    weight = normal(3, 8)
    weight[1] = 0
    coding = kind.fit(weight, q.PerChannel())
    coded = coding(weight).detach()
    assert not coded[1].any()
    read = kind.blank(weight, coding.settings()).unpack(coding.pack(coded), (3, 8))
    assert torch.equal(read, coded)


def test_more_bits_lose_less() -> None:
    weight = normal(8, 64)
    codings = [q.Symmetric.fit(weight, q.PerChannel(), bits) for bits in range(2, 9)]
    errors = [float((coding(weight) - weight).norm().detach()) for coding in codings]
    assert all(more < 0.75 * fewer for fewer, more in itertools.pairwise(errors))


def test_bytes_are_codes_and_scales() -> None:
    for bits in range(2, 9):
        weight = (torch.arange(64 * 64) % 2**bits).reshape(64, 64) - 1.0  # even: nothing for an entropy coder
        coding = q.Affine.fit(weight, q.PerTensor(), bits)
        packed = coding.pack(coding(weight).detach())
        assert packed.keys() == {"codes", "scale", "zero_point"}
        assert packed["codes"].nbytes == 64 * 64 * bits // 8
        assert packed["scale"].nbytes == 4
    coding = q.Symmetric.fit(normal(64, 64) ** 3, q.PerTensor(), 4)  # few large values: most codes are near 0
    packed = coding.pack(coding(normal(64, 64) ** 3).detach())
    assert packed.keys() == {"entropy", "scale"}
    assert packed["entropy"].nbytes < 64 * 64 * 4 // 8


def test_gradients_go_straight_through_inside_the_range() -> None:
    weight = torch.tensor([[-2.0, -0.6, 0.2, 2.0]], requires_grad=True)
    coding = q.Symmetric(torch.tensor([[0.5]]), q.PerChannel(), bits=3)  # levels up to 3 * 0.5
    coding(weight).sum().backward()
    assert weight.grad.tolist() == [[0.0, 1.0, 1.0, 0.0]]
    # d value / d log2 scale = scale * ln 2 * (level - weight / scale) inside, * level outside; LSQ's factor
    parts = [-3.0, -1.0 + 1.2, 0.0 - 0.4, 3.0]
    expected = 0.5 * math.log(2) * sum(parts) / math.sqrt(4 * 3)
    torch.testing.assert_close(coding.gain.grad, torch.tensor([[expected]]))


def test_a_binary_gradient_stops_beyond_one_and_a_ternary_one_does_not() -> None:
    for kind, expected in ((q.Binary, [0.0, 1.0, 1.0]), (q.Ternary, [1.0, 1.0, 1.0])):
        weight = torch.tensor([-2.0, -0.6, 0.2], requires_grad=True)
        coding = kind.fit(weight, q.PerTensor())
        coding(weight).sum().backward()
        torch.testing.assert_close(weight.grad, torch.tensor(expected))
        levels = coding.levels(weight, dict(coding.named_buffers())).detach()
        factor = math.sqrt(3 * (coding.n_codes - 1) / 2)
        torch.testing.assert_close(coding.gain.grad, coding.scale * math.log(2) * levels.sum() / factor)


def test_learning_finds_a_better_scale() -> None:
    weight = normal(1, 4096)
    coding = q.Symmetric.fit(weight, q.PerTensor(), bits=2)  # the largest of 4096 values is far too wide a range
    start = float((coding(weight) - weight).square().mean().detach())
    optimizer = torch.optim.Adam(coding.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        (coding(weight) - weight).square().mean().backward()
        optimizer.step()
    scales = torch.linspace(0.1, 4, 300)
    best = min(float((weight.div(s).round().clamp(-1, 1) * s - weight).square().mean()) for s in scales)
    assert best <= float((coding(weight) - weight).square().mean().detach()) < 1.05 * best < start


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


MAKERS = {
    "symmetric": lambda w, g: q.Symmetric.fit(w, g, 4),
    "affine": lambda w, g: q.Affine.fit(w, g, 4),
    "binary": q.Binary.fit,
    "ternary": q.Ternary.fit,
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("granularity", [q.PerTensor(), q.PerChannel()], ids=str)
def test_pruning_slices_scales_along(kind: str, granularity: q.Granularity) -> None:
    model = net()
    for key, weight in codable(model)[0].items():
        attach_(model, key, MAKERS[kind](weight, granularity))
    plan = secateur.plan(model, X, secateur.Budget(width=0.5))
    small = secateur.apply(model, plan)  # proven by the numeric law
    keep = plan.keep("3.parametrizations.weight.original")
    assert torch.equal(small[3].weight, model[3].weight.index_select(0, keep[0]).index_select(1, keep[1]))
    scale = codings_of(small)["3.weight"][0].scale
    assert scale.shape == granularity.scale_shape(tuple(small[3].weight.shape))


def test_groups_of_inputs_survive_pruning() -> None:
    model = net()
    for key, weight in codable(model)[0].items():
        attach_(model, key, q.Symmetric.fit(weight, q.PerGroup(9) if weight.ndim == 4 else q.PerGroup(4), 4))
    plan = secateur.plan(model, X, secateur.Budget(width=0.5))
    small = secateur.apply(model, plan)
    assert small[3].weight.numel() < model[3].weight.numel()


def test_what_makes_no_sense_is_refused() -> None:
    weight = normal(4, 10)
    for bits in (1, 9, 2.0, True):
        with pytest.raises(ConfigError, match="bits"):
            q.Symmetric.fit(weight, q.PerTensor(), bits)
    with pytest.raises(ConfigError, match="10 inputs can't be cut into groups of group_size=4"):
        q.Symmetric.fit(weight, q.PerGroup(4), 4)
    with pytest.raises(ConfigError, match="group_size=0"):
        q.PerGroup(0)
    with pytest.raises(ConfigError, match="no axis 2"):
        q.Binary.fit(weight, q.PerChannel(2))
    with pytest.raises(ConfigError, match="NaN or Inf"):
        q.Affine.fit(weight / 0, q.PerTensor(), 4)
    with pytest.raises(ConfigError, match="bfloat16 can't hold 256 levels"):
        q.Affine.fit(weight.bfloat16(), q.PerTensor(), 8)
