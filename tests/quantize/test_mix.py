"""Mixed bits and units: one budget, the best choice where all can be tried, units that are really gone."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.allocate import ErrorCurve
from secateur.allocate.walk import TOLERANCE
from secateur.coding import codable, codings_of
from secateur.edits import Edits
from secateur.errors import ConfigError, DataError
from secateur.files.state import state_of
from secateur.graph import trace
from secateur.mixing import Option, Storage, share_out
from secateur.quantize import PerChannel, PerGroup, Symmetric
from secateur.steps import STEPS, Context, Done, Mix, Step
from secateur.steps.quantize import Quantize, quantize

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
OPTIONS = (0, 2, 4, 8)


class Branches(nn.Module):
    """A residual block that hardly matters, and layers that do."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.idle, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)
        with torch.no_grad():
            self.idle.weight.mul_(1e-4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).relu()
        return self.head(h + self.idle(h))


def redundant() -> nn.Module:
    """Three in four of the hidden units hardly matter."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    for layer in (model[0], model[2]):
        assert isinstance(layer, nn.Linear)
        with torch.no_grad():
            layer.weight[8:] *= 1e-2
            layer.bias[8:] *= 1e-2
    return model


def mixed(model: nn.Module, step: Mix, x: Tensor = X) -> Done:
    half = len(x) // 2
    return step.run(model, Context(dense=model, inputs=lambda n: x[:n], calibration=lambda: [x[:half], x[half:]]))


def options_of(model: nn.Module, losses: Mapping[str, Mapping[int, float]]) -> dict[str, list[Option]]:
    weights = codable(model)[0]

    def option(key: str, bits: int, loss: float) -> Option:
        return Option(bits, Symmetric.fit(weights[key], PerChannel(), bits) if bits else None, loss)

    return {key: [option(key, bits, loss) for bits, loss in curve.items()] for key, curve in losses.items()}


def slow_bytes(model: nn.Module, bits: Mapping[str, int]) -> int:
    """What the model's tensors take with codes of that many bits, counted one tensor at a time."""
    total = 0
    for key, t in model.named_parameters():
        if key not in bits:
            total += t.numel() * 4
        elif bits[key]:
            total += -(-t.numel() * bits[key] // 8) + 4 * len(t)
    return total


def chain(widths: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def random_losses(generator: torch.Generator, keys: list[str]) -> dict[str, dict[int, float]]:
    starts = torch.rand(len(keys), generator=generator).tolist()
    return {key: {bits: start * 4.0**-bits for bits in OPTIONS} for key, start in zip(keys, starts, strict=True)}


def test_bits_alone_are_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        model = chain(tuple(torch.randint(2, 40, (5,), generator=generator).tolist()))
        keys = list(codable(model)[0])
        losses = random_losses(generator, keys)
        limit = slow_bytes(model, dict.fromkeys(keys, 4))
        options = options_of(model, losses)
        chosen, found = share_out(options, Storage(model, options), limit)
        every = [dict(zip(keys, bits, strict=True)) for bits in itertools.product(OPTIONS, repeat=len(keys))]
        fitting = [bits for bits in every if slow_bytes(model, bits) <= limit]
        best = min(sum(losses[key][n] for key, n in bits.items()) for bits in fitting)
        assert {key: option.bits for key, option in chosen.items()} in fitting
        assert sum(option.loss for option in chosen.values()) == pytest.approx(best, rel=1e-9)
        assert found.keep == {}


def test_units_and_bits_together_are_near_the_best_of_all() -> None:
    """Sizes are products of widths and bits: the choice is bounded by the best one, and by the best of bits alone."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        model = chain((3, 6, 5, 4))
        keys = list(codable(model)[0])
        losses = random_losses(generator, keys)
        graph = trace(model, torch.zeros(1, 3))
        curves = {}
        for group in graph.prunable:
            gains = torch.rand(group.size, generator=generator).double().sort(descending=True).values * 1e-2
            errors = torch.cat([gains.flip(0).cumsum(0).flip(0), torch.zeros(1)])
            curves[group.name] = ErrorCurve(errors, torch.arange(group.size))
        options = options_of(model, losses)
        storage = Storage(model, options, graph)
        limit = slow_bytes(model, dict.fromkeys(keys, 4))

        def loss_of(bits: Mapping[str, int], counts: Mapping[str, int], losses: Any = losses, e: Any = curves) -> float:
            units = sum(float(e[name].errors[n]) for name, n in counts.items())
            return units + sum(losses[key][n] for key, n in bits.items())

        fitting: dict[tuple[int, ...], list[float]] = {}
        for widths in itertools.product(range(1, 7), range(1, 6)):
            small, counts = chain((3, *widths, 4)), dict(zip(curves, widths, strict=True))
            for choice in itertools.product(OPTIONS, repeat=3):
                bits = dict(zip(keys, choice, strict=True))
                n = slow_bytes(small, bits)
                assert n == storage.n_bytes({key: OPTIONS.index(b) for key, b in bits.items()}, counts)
                if n <= limit:
                    fitting.setdefault(widths, []).append(loss_of(bits, counts))
        best, alone = min(map(min, fitting.values())), min(fitting[6, 5])
        chosen, found = share_out(options, storage, limit, curves)
        kept = {name: len(keep) for name, keep in found.keep.items()}
        loss = loss_of({key: option.bits for key, option in chosen.items()}, kept)
        assert slow_bytes(chain((3, *kept.values(), 4)), {k: o.bits for k, o in chosen.items()}) <= limit
        assert best <= loss + 1e-12
        assert loss <= alone + 1e-12
        assert loss <= best + 0.1 * (alone - best) + 1e-12


@pytest.mark.parametrize("bits", [0.7, 1.5, 3, 4.5])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor", "per_group?group_size=8"])
def test_the_size_is_met_or_the_reason_said(bits: float, granularity: str) -> None:
    model = redundant()
    step = Mix(bits=bits, options=OPTIONS, granularity=granularity)
    done = mixed(model, step)
    whole = quantize(model, step=Quantize(bits=8, granularity=granularity)).model
    n_weights = sum(w.numel() for w in codable(model)[0].values())
    n_scales = sum(stack[-1].scale.numel() for stack in codings_of(whole).values())
    rest = sum(t.numel() for key, t in model.named_parameters() if key.endswith("bias"))
    limit = n_weights * bits / 8 + 4 * (n_scales + rest)
    used = sum(t.numel() * t.element_size() for t in state_of(done.model).tensors.values())
    assert used <= limit + 1
    nominal = 4 * sum(len(t) for key, t in done.model.named_parameters() if key.endswith("bias"))
    for key, fact in done.facts["layers"].items():
        (stack,) = (s for k, s in codings_of(done.model).items() if k == key)
        nominal += -(-codable(done.model)[0][key].numel() * fact["bits"] // 8)
        nominal += 4 * stack[-1].scale.numel() if fact["bits"] else 0
    assert nominal <= limit + 1
    dense = n_weights + 4 * (n_scales + rest)
    assert limit - nominal <= (TOLERANCE + 0.01) * dense or any("size_bytes is" in note for note in done.notes)


def test_units_without_bits_are_gone_and_come_back_from_the_file(tmp_path: Path) -> None:
    model = redundant()
    before = [t.clone() for t in model.parameters()]
    done = mixed(model, Mix(bits=2))
    small = done.model
    assert isinstance(small[0], nn.Linear)
    assert small[0].out_features == small[2].weight.shape[1] < 20
    assert all(map(torch.equal, before, model.parameters()))
    assert isinstance(done.edit, Edits)
    assert [edit.kind for edit in done.edit.steps] == ["prune", "code"]
    assert any("units have no bits: they are removed" in note for note in done.notes)
    assert done.facts["max_difference"] < 1e-4
    edits = Edits().then(done.edit)
    assert Edits.from_json(edits.to_json()) == edits
    folder = secateur.save(small, tmp_path / "small", plan=edits, inputs=X)
    assert torch.equal(secateur.load(folder, redundant)(X), small(X))


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_units_and_bits_lose_less_than_bits_alone(distance: Any) -> None:
    model, x = redundant(), torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    losses = []
    for has_units in (True, False):
        small = mixed(model, Mix(bits=1.5, distance=distance, has_units=has_units), x).model
        losses.append(float((small(x) - model(x)).square().mean().detach()))
    assert losses[0] < 0.1 * losses[1]


def test_an_idle_layer_gets_no_bits_and_the_rest_get_more(tmp_path: Path) -> None:
    model = Branches().eval()
    done = mixed(model, Mix(bits=4, options=OPTIONS, has_units=False))
    bits = {key: fact["bits"] for key, fact in done.facts["layers"].items()}
    sizes = {key: w.numel() for key, w in codable(model)[0].items()}
    assert bits["idle.weight"] == 0
    assert bool((done.model.idle.weight == 0).all())
    assert sum(bits[key] * n for key, n in sizes.items()) <= 4 * sum(sizes.values())
    assert bits["stem.weight"] == bits["head.weight"] == 8
    assert "'idle.weight' has no bits: it is zero" in done.notes
    assert not codings_of(model)
    assert {key: t.shape for key, t in codable(done.model)[0].items()} == {
        key: t.shape for key, t in codable(model)[0].items()
    }
    folder = secateur.save(done.model, tmp_path / "small", plan=Edits().then(done.edit), inputs=X)
    assert torch.equal(secateur.load(folder, Branches)(X), done.model(X))


def test_losses_are_those_of_one_layer_at_a_time() -> None:
    model = Branches().eval()
    done = mixed(model, Mix(bits=4, options=(0, 4), has_units=False))
    before = model(X)
    changed = Branches().eval()
    changed.stem.weight.data.zero_()
    expected = float(((changed(X) - before).square().mean() / before.var(correction=0)).detach())
    assert done.facts["layers"]["stem.weight"]["losses"][0] == pytest.approx(expected, rel=1e-4)


def test_mixed_bits_lose_less_than_even_ones_of_the_same_size() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    model[2].weight.data[:, 1:] *= 1e-2  # most of this layer hardly matters
    even = quantize(model, step=Quantize(bits=3)).model
    small = mixed(model, Mix(bits=3, options=(2, 3, 4, 6, 8), has_units=False)).model
    losses = [float((m(X) - model(X)).square().sum().detach()) for m in (small, even)]
    assert losses[0] < losses[1]


def test_bits_alone_where_no_unit_can_go() -> None:
    class Counting(nn.Module):
        """Its forward depends on values, so that no group is known."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if float(x.sum()) > -1e9 else x

    for model, reason in ((Counting(), "no unit is removed: "), (nn.Linear(6, 4), "can be pruned")):
        done = mixed(model.eval(), Mix(bits=4))
        assert any(reason in note for note in done.notes)
        assert len(done.facts["layers"]) == 1


def test_what_is_out_of_reach_is_said() -> None:
    done = mixed(nn.Linear(6, 4).eval(), Mix(bits=0.01, options=(2, 8)))
    assert any("out of reach" in note for note in done.notes)
    options = {"0.weight": [Option(2, Symmetric(torch.ones(4, 2, 1), PerGroup(3), 2), 0.0)]}
    storage = Storage(nn.Sequential(nn.Linear(5, 4, bias=False)), options)
    assert storage.n_bytes({}) == 20 * 2 // 8 + 4 * 4  # five inputs are no groups of three: a scale per channel


def test_it_is_a_step_and_refuses_nonsense() -> None:
    assert isinstance(STEPS["mix"](), Step)
    wrongs: tuple[dict[str, Any], ...] = (
        {"bits": 9},
        {"bits": 0},
        {"bits": 1, "options": (2, 8), "has_units": False},
        {"options": (8, 2)},
        {"options": (1, 8)},
        {"method": "binary"},
        {"distance": "l2"},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            Mix(**wrong)
    with pytest.raises(DataError, match="measured on data"):
        Mix().run(Branches(), Context(dense=Branches(), inputs=lambda n: X[:n], calibration=list))
