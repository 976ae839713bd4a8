"""Penalties: each is its formula written unit by unit, has a gradient everywhere, and does what it is for."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.criteria.base import LEARNED
from secateur.data import ArrayDataset
from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.recipe import Recipe, read_recipe_text, write_recipe
from secateur.train import REGULARIZERS, TrainConfig, fit_
from secateur.train.config import make_optimizer
from secateur.train.regularizers import L1, L2, GroupLasso, Growing, Polarization, Regularizer, bind_all
from secateur.train.schedule import EpochBatches, cosine_lr

CASES: list[Regularizer] = [
    L1(strength=0.1),
    L2(strength=0.1),
    GroupLasso(strength=0.1),
    Growing(sparsity=0.4, delta=0.2, every=2, ceiling=0.5),
    Polarization(strength=0.1),
]


def data(n: int = 64) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 6, 6, generator=generator)
    return ArrayDataset(x, (x.mean((1, 2, 3)) > 0).long())


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    for module in (model[1], model[4]):
        module.weight.data.uniform_(-1, 1)
    return model


def units_of(model: nn.Module) -> list[list[Tensor]]:
    """By group: by unit: all its weights, one after another."""
    parameters = {key: p.detach() for key, p in model.named_parameters()}
    found = []
    for group in trace(model, data().x[:2]).prunable:
        members = [m for m in group.members if m.role in LEARNED and m.key in parameters]
        found.append([torch.cat([m.view(parameters[m.key])[u].flatten() for m in members]) for u in range(group.size)])
    return found


def slow(case: Regularizer, model: nn.Module, step: int) -> float:
    """The formulas, one weight or one unit at a time."""
    weights = [float(w) for p in model.parameters() if p.ndim > 1 for w in p.detach().flatten()]
    match case:
        case L1():
            return case.strength * sum(abs(w) for w in weights)
        case L2():
            return case.strength / 2 * sum(w * w for w in weights)
        case GroupLasso():
            return case.strength * sum(math.sqrt(len(u)) * float(u.norm()) for us in units_of(model) for u in us)
        case Growing():
            total = 0.0
            for units in units_of(model):
                order = sorted(units, key=lambda u: float(u.abs().sum()))[: round(case.sparsity * len(units))]
                total += sum(float(u.square().sum()) for u in order)
            return min(case.ceiling, case.delta * (1 + step // case.every)) / 2 * total
        case Polarization():
            scales = [abs(float(g)) for i in (1, 4) for g in model[i].weight.detach()]
            mean = sum(scales) / len(scales)
            return case.strength * (case.t * sum(scales) - sum(abs(g - mean) for g in scales))
    raise AssertionError


def test_every_registered_regularizer_has_a_case() -> None:
    assert {type(case) for case in CASES} == set(REGULARIZERS.values())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("step", [0, 3, 100])
def test_a_penalty_is_its_formula(case: Regularizer, step: int) -> None:
    model = net()
    (penalty,) = bind_all([case], model, data())
    assert float(penalty(step).detach()) == pytest.approx(slow(case, model, step), rel=1e-5)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_finite_where_weights_are_zero(case: Regularizer) -> None:
    model = net()
    (penalty,) = bind_all([case], model, data())
    for parameter in model.parameters():
        parameter.data.zero_()
    penalty(5).backward()
    assert all(p.grad is None or bool((p.grad == 0).all()) for p in model.parameters())


def test_the_loop_adds_penalties_of_each_step() -> None:
    config = TrainConfig(epochs=2, batch_size=16, lr=0.02, optimizer="sgd", regularizers=(CASES[1], CASES[3]))
    ours, plain = net(), net()
    fit_(ours, data(), config=config, progress=False)
    penalties = bind_all(config.regularizers, plain, data())
    optimizer, order, step = make_optimizer(plain, config), EpochBatches(64, batch_size=16, seed=0), 0
    plain.train()
    for epoch in (1, 2):
        order.set_epoch(epoch)
        for indices in order:
            optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = cosine_lr(
                step, 2 * len(order), lr=config.lr, warmup_fraction=config.warmup_fraction
            )
            x, y = data().fetch(indices)
            loss = nn.functional.cross_entropy(plain(x), y)
            optimizer.zero_grad()
            (loss + penalties[0](step) + penalties[1](step)).backward()
            optimizer.step()
            step += 1
    torch.testing.assert_close(list(ours.state_dict().values()), list(plain.state_dict().values()))


def trained(*regularizers: Regularizer) -> nn.Module:
    model = net()
    config = TrainConfig(epochs=20, batch_size=16, lr=0.05, weight_decay=0, optimizer="sgd", regularizers=regularizers)
    fit_(model, data(), config=config, progress=False)
    return model


def test_group_lasso_makes_whole_units_small() -> None:
    def smallest(model: nn.Module) -> float:
        return min(float(u.norm()) for units in units_of(model) for u in units)

    assert smallest(trained(GroupLasso(strength=0.05))) < 0.2 * smallest(trained())


def test_growing_regularization_fades_the_chosen_units_out() -> None:
    norms = [sorted(float(u.norm()) for u in units) for units in units_of(trained(Growing(delta=0.5, ceiling=5.0)))]
    assert all(max(part[: len(part) // 2]) < 0.1 * min(part[len(part) // 2 :]) for part in norms)


def test_polarization_leaves_a_gap_between_scales() -> None:
    def widest(model: nn.Module) -> float:
        scales = torch.cat([model[1].weight, model[4].weight]).detach().abs().sort().values
        return float(scales.diff().max() / scales.max())

    assert widest(trained(Polarization(strength=0.05, t=1.0))) > widest(trained())


def test_settings_survive_json_and_recipes() -> None:
    config = TrainConfig(regularizers=tuple(CASES))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    recipe = Recipe(finetune=config)
    assert read_recipe_text(write_recipe(recipe)) == recipe


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([{"kind": "l3"}], r"No regularizer 'l3'\. Known: group_lasso, growing, l1, l2, polarization"),
        ([{"kind": "l1", "t": 1}], r"Regularizer 'l1' does not take \['t'\]"),
        ([{"kind": "l1", "strength": -1}], "strength=-1"),
        ([{"kind": "growing", "sparsity": 1.0}], r"sparsity=1\.0 is outside"),
        (["l1"], "No regularizer 'None'"),
    ],
)
def test_wrong_settings_are_named(values: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        TrainConfig.from_dict({"regularizers": values})


def test_nothing_to_regularize_is_an_error() -> None:
    linear = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    for case, text in ((GroupLasso(), "no prunable groups"), (Polarization(), "No norm with scales")):
        with pytest.raises(ConfigError, match=text):
            bind_all([case], linear, data())
    with pytest.raises(ConfigError, match="No weight of two or more axes"):
        bind_all([L1()], linear.requires_grad_(False), data())
