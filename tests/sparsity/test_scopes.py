"""Scopes share a sparsity out: totals are exact, and each follows its paper written out slowly."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.sparsity import ERK, SCOPES, AllLayers, Lamp, PerLayer, PerOutput, Scope
from secateur.sparsity.scopes import Candidates

CASES: list[Scope] = [PerLayer(), PerOutput(), AllLayers(), Lamp(), ERK()]
SHAPES = st.lists(st.sampled_from([(8, 4), (3, 16), (4, 2, 3, 3), (1, 1), (40, 30)]), min_size=1, max_size=5)


def layers(shapes: list[tuple[int, ...]], seed: int = 0) -> dict[str, Candidates]:
    generator = torch.Generator().manual_seed(seed)
    return {
        str(i): Candidates(shape, prod(shape), torch.randint(0, 9, (prod(shape),), generator=generator).float())
        for i, shape in enumerate(shapes)
    }


def test_every_registered_scope_has_a_case() -> None:
    assert {type(case) for case in CASES} == set(SCOPES.values())


@pytest.mark.parametrize("scope", CASES, ids=str)
@given(shapes=SHAPES, seed=st.integers(0, 99), sparsity=st.floats(0, 0.999))
@settings(deadline=None, max_examples=40)
def test_counts_are_exact(scope: Scope, shapes: list[tuple[int, ...]], seed: int, sparsity: float) -> None:
    found = layers(shapes, seed)
    kept = scope.kept(found, sparsity)
    assert list(kept) == list(found)
    assert all(0 <= kept[key] <= layer.n for key, layer in found.items())
    total = sum(layer.n for layer in found.values())
    if isinstance(scope, PerLayer):
        assert kept == {key: layer.n - round(sparsity * layer.n) for key, layer in found.items()}
    else:
        assert sum(kept.values()) == total - round(sparsity * total)


@given(shapes=SHAPES, seed=st.integers(0, 99), sparsity=st.floats(0, 0.99))
@settings(deadline=None, max_examples=25)
def test_thresholds_over_all_layers_are_those_of_one_sort(
    shapes: list[tuple[int, ...]], seed: int, sparsity: float
) -> None:
    found = layers(shapes, seed)

    def slow(scores: dict[str, list[float]]) -> dict[str, int]:
        pairs = [(-s, number) for number, s in enumerate(s for part in scores.values() for s in part)]
        best = {number for _, number in sorted(pairs)[: len(pairs) - round(sparsity * len(pairs))]}
        counts, at = {}, 0
        for key, part in scores.items():
            counts[key] = sum(number in best for number in range(at, at + len(part)))
            at += len(part)
        return counts

    plain = {key: layer.known().tolist() for key, layer in found.items()}
    assert AllLayers().kept(found, sparsity) == slow(plain)
    lamp = {}
    for key, part in plain.items():  # Lee et al.: sorted ascending, w[u]^2 over the sum of w[v]^2 for v >= u
        order = sorted(range(len(part)), key=lambda i, part=part: (part[i], -i))
        squares = [part[i] ** 2 for i in order]
        shares = [s / sum(squares[u:]) if s else 0.0 for u, s in enumerate(squares)]
        lamp[key] = [shares[order.index(i)] for i in range(len(part))]
    assert Lamp().kept(found, sparsity) == slow(lamp)


def test_erk_is_its_formula() -> None:
    shapes = [(64, 3, 3, 3), (128, 64, 3, 3), (256, 128, 3, 3), (10, 256)]
    found = layers(shapes)
    kept = ERK().kept(found, 0.9)
    total = sum(map(prod, shapes))
    dense: set[int] = set()
    while True:  # Evci et al.: one factor for all layers that are not full
        free = 0.1 * total - sum(prod(shapes[i]) for i in dense)
        factor = free / sum(sum(s) for i, s in enumerate(shapes) if i not in dense)
        density = [1.0 if i in dense else factor * sum(s) / prod(s) for i, s in enumerate(shapes)]
        if not (more := {i for i, d in enumerate(density) if d >= 1} - dense):
            break
        dense |= more
    assert dense
    for (_, n), d, shape in zip(kept.items(), density, shapes, strict=True):
        assert n == pytest.approx(d * prod(shape), abs=1)


def test_lamp_empties_no_layer() -> None:
    found = {
        "small": Candidates((10,), 10, torch.arange(1.0, 11)),
        "tiny": Candidates((10,), 10, 1e-4 * torch.arange(1.0, 11)),
    }
    assert AllLayers().kept(found, 0.5) == {"small": 10, "tiny": 0}
    assert Lamp().kept(found, 0.5) == {"small": 5, "tiny": 5}
