"""Weight sharing: what is stored comes back, tied weights move together, zeros stay zero."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.coding import Code, Mask, attach_, bake, codable, codings_of
from secateur.edits import Edits
from secateur.errors import ConfigError, FileError, PlanError
from secateur.sharing import Codebook, Codebooks
from secateur.sharing.clusters import fit_lines, fit_values, nearest_lines, nearest_values
from secateur.steps import STEPS, Context, Share

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (8,), generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def half_masked(model: nn.Module, *, whole_kernels: bool = False) -> dict[str, Mask]:
    masks = {}
    for key, w in codable(model)[0].items():
        size = w.abs().sum((2, 3), keepdim=True).expand_as(w) if whole_kernels and w.dim() == 4 else w.abs()
        masks[key] = Mask(size > size.median())
        attach_(model, key, masks[key])
    return masks


def context(model: nn.Module, batches: Any = ()) -> Context:
    return Context(dense=model, inputs=lambda n: X[:n], calibration=lambda: iter(batches))


def cost(x: Tensor, values: Tensor, weights: Tensor | None = None) -> float:
    distances = (x.double() - values[nearest_values(x.double(), values)]).square()
    return float((distances if weights is None else distances * weights).sum())


@pytest.mark.parametrize("weighted", [False, True])
def test_values_are_those_of_the_best_partition(weighted: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    for n_values in (1, 2, 3):
        x = torch.randn(12, generator=generator).double().sort().values
        weights = torch.rand(12, generator=generator).double() if weighted else torch.ones(12, dtype=torch.double)
        best = float("inf")
        for cuts in itertools.combinations(range(1, 12), n_values - 1):  # slow and obvious: every partition
            total = 0.0
            for a, b in zip((0, *cuts), (*cuts, 12), strict=True):
                mean = (x[a:b] * weights[a:b]).sum() / weights[a:b].sum()
                total += float((weights[a:b] * (x[a:b] - mean).square()).sum())
            best = min(best, total)
        assert cost(x, fit_values(x, n_values, weights), weights) == pytest.approx(best)


@pytest.mark.parametrize("n_values", [4, 16, 64])
def test_values_are_as_good_as_those_of_scikit_learn(n_values: int) -> None:
    from sklearn.cluster import KMeans

    x = torch.randn(3000, generator=torch.Generator().manual_seed(0)).double()
    theirs = KMeans(n_values, n_init=2, random_state=0).fit(x[:, None].numpy()).inertia_
    assert cost(x, fit_values(x, n_values)) <= 1.001 * theirs


def test_few_distinct_numbers_are_kept_as_they_are() -> None:
    assert fit_values(torch.tensor([3.0, 1.0, 3.0]), 8).tolist() == [1.0, 3.0]


def test_lines_are_found_whatever_the_scale_and_sign() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.nn.functional.normalize(torch.randn(5, 9, generator=generator).double(), dim=1)
    which = torch.randint(0, 5, (200,), generator=generator)
    vectors = truth[which] * torch.randn(200, 1, generator=generator)
    lines = fit_lines(vectors, 5)
    codes = nearest_lines(vectors, lines)
    again = (vectors * lines[codes]).sum(1, keepdim=True) * lines[codes]
    torch.testing.assert_close(again, vectors)


CASES = {
    "values": Share(n_values=8),
    "one codebook": Share(n_values=8, is_global=True),
    "kernels": Share(n_values=8, is_kernel=True),
    "kernels of all layers": Share(n_values=8, is_kernel=True, is_global=True),
}


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_the_laws_of_codings(name: str, is_masked: bool) -> None:
    model = net()
    if is_masked:
        half_masked(model, whole_kernels=True)
    before = codable(model)[0]
    done = CASES[name].run(model, context(model))
    again = done.edit.replay(model)
    stacks, fresh = codings_of(done.model), codings_of(again)
    for key in done.facts["weights"]:
        coding, value = stacks[key][-1], codable(done.model)[0][key]
        assert torch.equal(coding(value), value)
        settings = coding.settings()
        assert Codebook.blank(value, settings).settings() == settings
        assert torch.equal(fresh[key][-1].unpack(coding.pack(value), tuple(value.shape)), value)
        assert torch.equal(value == 0, before[key] == 0) or not is_masked
        lost = float((value - before[key]).square().sum() / before[key].square().sum())
        assert done.facts["weights"][key]["error"] == pytest.approx(lost, abs=1e-6)
    with torch.no_grad():
        again.load_state_dict(done.model.state_dict())
        assert torch.equal(again(X), done.model(X))
    assert len(codings_of(model)) == (3 if is_masked else 0)  # the original is as it was


def test_tied_gradients_are_the_sums_of_their_group() -> None:
    for step in (CASES["one codebook"], CASES["kernels of all layers"]):
        model = net()
        done = step.run(model, context(model))
        free = bake(done.model)
        for m in (free, done.model):
            nn.functional.cross_entropy(m(X), Y).backward()
        stacks = codings_of(done.model)
        expected = None  # slow and obvious: by code, the gradients of all weights, each times its scale
        for key in done.facts["weights"]:
            gradient = free.get_parameter(key).grad
            coding = stacks[key][-1]
            rows = gradient.reshape(-1, coding.unit) * coding.scales.detach()[:, None]
            expected = torch.zeros_like(coding.codebook) if expected is None else expected
            for code in range(coding.n_values):
                expected[code] += rows[coding.codes == code].sum(0)
        torch.testing.assert_close(stacks[key][-1].codebook.grad, expected)


def test_fine_tuning_keeps_ties_and_zeros() -> None:
    model = net()
    masks = half_masked(model)
    done = Share(n_values=4).run(model, context(model))
    optimizer = torch.optim.SGD(done.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    before = codable(done.model)[0]
    first = float(nn.functional.cross_entropy(done.model(X), Y).detach())
    for _ in range(10):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(done.model(X), Y)
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < first
    for key, weight in codable(done.model)[0].items():
        assert bool((weight[~masks[key].mask] == 0).all())
        assert not torch.equal(weight, before[key])
        assert len(weight.unique()) <= 5


def test_curvature_decides_what_is_coded_well() -> None:
    model = net()
    plain = Share(n_values=4).run(model, context(model))
    aware = Share(n_values=4, is_weighted=True).run(model, context(model, [(X, Y)]))
    fisher = secateur.criteria.collect_squared_gradients(model, [(X, Y)])
    for key, weight in codable(model)[0].items():
        lost = [float((fisher[key] * (codable(done.model)[0][key] - weight).square()).sum()) for done in (aware, plain)]
        assert lost[0] < lost[1]
    with pytest.raises(ConfigError, match="no labels"):
        Share(is_weighted=True).run(model, context(model, [X]))


@pytest.mark.parametrize("name", CASES)
def test_a_saved_model_is_small_and_comes_back(name: str, tmp_path: Path) -> None:
    model = net()
    half_masked(model, whole_kernels=True)
    masks = {key: stack[0] for key, stack in codings_of(model).items()}
    done = CASES[name].run(model, context(model))
    edits = Edits().then(Code.of(masks)).then(done.edit)
    assert Edits.from_json(edits.to_json()) == edits
    folder = secateur.save(done.model, tmp_path / "small", plan=edits, inputs=X)
    again = secateur.load(folder, net)
    assert torch.equal(again(X), done.model(X))
    books = [stack[-1] for stack in codings_of(again).values() if isinstance(stack[-1], Codebook)]
    if CASES[name].is_global:
        assert len({id(book.codebook) for book in books}) == 1
    for key, stack in codings_of(done.model).items():
        assert torch.equal(codings_of(again)[key][0].mask, stack[0].mask)


def test_a_traced_model_keeps_what_is_shared_whole() -> None:
    model = net()
    done = Share(n_values=8, only=("3.*",)).run(model, context(model))
    graph = secateur.trace(done.model, X[:1])
    assert not any("3." in m.key for g in graph.prunable for m in g.members)


def test_what_is_left_alone_has_a_reason() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten())
    model[2].weight.data.zero_()
    attach_(model, "3.weight", Mask(torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(0)) > 0.5))
    done = Share(n_values=3, is_kernel=True).run(model, context(model))
    assert dict(done.skipped) == {
        "1.weight": "its kernels are single weights",
        "2.weight": "all of it is zero",
        "3.weight": "its mask leaves parts of kernels",
    }
    again = Share(n_values=64, ignore=("1.*",)).run(done.model, context(model))
    assert dict(again.skipped) == {
        "0.weight": "coded already",
        "1.weight": "protected by `only` or `ignore`",
        "2.weight": "all of it is zero",
        "3.weight": "it has no more than 64 weights",
    }
    assert again.edit is None
    assert STEPS["share"] is Share


def test_settings_edits_and_files_are_checked() -> None:
    with pytest.raises(ConfigError, match="n_values=0"):
        Share(n_values=0)
    with pytest.raises(ConfigError, match="as a whole"):
        Share(is_kernel=True, is_weighted=True)
    weight = torch.randn(4, 6)
    good = {"n_values": 3, "unit": 2, "n_scales": 12, "has_zero": True}
    for bad in ({}, {**good, "unit": 5}, {**good, "n_values": 13}, {**good, "n_scales": 2}, {**good, "n_values": "3"}):
        with pytest.raises(ConfigError):
            Codebook.blank(weight, bad)
    blank = Codebook.blank(weight, good)
    packed = blank.pack(blank(weight))
    for wrong in (
        {"codes": packed["codes"]},
        {**packed, "values": packed["values"][1:]},
        {**packed, "scales": packed["scales"].int()},
        {**packed, "codes": packed["codes"][1:]},
    ):
        with pytest.raises(FileError):
            blank.unpack(wrong, (4, 6))
    model = nn.Sequential(nn.Linear(6, 4))
    with pytest.raises(PlanError, match="can't borrow"):
        Codebooks({"0.weight": ("codebook", good)}, {"0.weight": "1.weight"}).replay(model)
    with pytest.raises(ConfigError, match="same settings"):
        blank.borrow_(Codebook.blank(weight, {**good, "n_values": 4}))
    assert np.isfinite(blank(weight).detach().numpy()).all()
