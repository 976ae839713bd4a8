"""Mixed bits: one budget, the best choice where all can be tried, and layers that go altogether."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.coding import codable, codings_of
from secateur.edits import Edits
from secateur.errors import ConfigError, DataError
from secateur.steps import STEPS, Context, Done, Mix, Step
from secateur.steps.mix import choose_bits
from secateur.steps.quantize import Quantize

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


def mixed(model: nn.Module, step: Mix) -> Done:
    context = Context(dense=model, inputs=lambda n: X[:n], calibration=lambda: [X[:6], X[6:]])
    return step.run(model, context)


def test_the_budget_holds_and_the_choice_is_near_the_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        curves, sizes = {}, {}
        for name in "abcde":
            sizes[name] = int(torch.randint(10, 1000, (), generator=generator))
            start = float(torch.rand((), generator=generator))
            curves[name] = {bits: start * 4.0**-bits for bits in OPTIONS}
        found = choose_bits(curves, sizes, OPTIONS, 4.0)

        def bits_of(choice: dict[str, int], sizes: dict[str, int] = sizes) -> float:
            return sum(sizes[key] * bits for key, bits in choice.items()) / sum(sizes.values())

        def loss_of(choice: dict[str, int], curves: dict[str, dict[int, float]] = curves) -> float:
            return sum(curves[key][bits] for key, bits in choice.items())

        every = [dict(zip("abcde", bits, strict=True)) for bits in itertools.product(OPTIONS, repeat=5)]
        best = min(loss_of(choice) for choice in every if bits_of(choice) <= 4)
        assert bits_of(found) <= 4
        even = loss_of(dict.fromkeys("abcde", 4))
        assert best <= loss_of(found) <= even
        assert loss_of(found) < best + 0.5 * (even - best) + 1e-12


def test_an_idle_layer_gets_no_bits_and_the_rest_get_more(tmp_path: Path) -> None:
    model = Branches().eval()
    done = mixed(model, Mix(bits=4, options=OPTIONS))
    bits = {key: fact["bits"] for key, fact in done.facts["layers"].items()}
    sizes = {key: w.numel() for key, w in codable(model)[0].items()}
    assert bits["idle.weight"] == 0
    assert bool((done.model.idle.weight == 0).all())
    assert sum(bits[key] * n for key, n in sizes.items()) <= 4 * sum(sizes.values())
    assert bits["stem.weight"] == bits["head.weight"] == 8
    assert "'idle.weight' has no bits: it is zero" in done.notes
    assert not codings_of(model)
    folder = secateur.save(done.model, tmp_path / "small", plan=Edits().then(done.edit), inputs=X)
    assert torch.equal(secateur.load(folder, Branches)(X), done.model(X))


def test_losses_are_those_of_one_layer_at_a_time() -> None:
    model = Branches().eval()
    done = mixed(model, Mix(bits=4, options=(0, 4)))
    before = model(X)
    changed = Branches().eval()
    changed.stem.weight.data.zero_()
    expected = float(((changed(X) - before).square().sum() / before.square().sum()).detach())
    assert done.facts["layers"]["stem.weight"]["losses"][0] == pytest.approx(expected, rel=1e-4)


def test_mixed_bits_lose_less_than_even_ones_of_the_same_size() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    model[2].weight.data[:, 1:] *= 1e-2  # most of this layer hardly matters
    losses = []
    for done in (mixed(model, Mix(bits=3, options=(2, 3, 4, 6, 8))), mixed_even(model)):
        losses.append(float((done.model(X) - model(X)).square().sum().detach()))
    assert losses[0] < losses[1]


def mixed_even(model: nn.Module) -> Done:
    return Quantize(bits=3).run(model, Context(dense=model, inputs=lambda n: X[:n], calibration=lambda: [X]))


def test_it_is_a_step_and_refuses_nonsense() -> None:
    assert isinstance(STEPS["mix"](), Step)
    wrongs = (
        {"bits": 9},
        {"bits": 1, "options": (2, 8)},
        {"options": (8, 2)},
        {"options": (1, 8)},
        {"method": "binary"},
    )
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            Mix(**wrong)
    with pytest.raises(DataError, match="measured on data"):
        Mix().run(Branches(), Context(dense=Branches(), inputs=lambda n: X[:n], calibration=list))
