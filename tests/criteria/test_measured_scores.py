"""Scores from what was measured, against their formulas spelled out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional

from secateur.criteria import (
    KL,
    ActivationCosine,
    ActivationMean,
    Activity,
    Apoz,
    Context,
    Fisher,
    HRank,
    KLFisher,
    Obd,
    Obs,
    TaylorActivation,
    TaylorSecond,
    Wanda,
)
from secateur.dims.groups import Group, Member

UNITS = Group("g", "features", 3, (Member("w", 1, "reader", size=3), Member("p", 0, "producer", size=3)))


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_scores_of_gates():
    gates = drawn(8, 3)
    source = Context({}, gates={"g": gates}, model_gates={"g": gates * 2})
    rows = gates.double().T.tolist()
    mean = [sum(row) / 8 for row in rows]
    square = [sum(v * v for v in row) / 8 for row in rows]
    expected = {
        TaylorActivation(): [sum(abs(v) for v in row) / 8 for row in rows],
        Fisher(): [s / 2 for s in square],
        TaylorSecond(): [abs(-m + s / 2) for m, s in zip(mean, square, strict=True)],
        KLFisher(): [4 * s / 2 for s in square],
    }
    for criterion, values in expected.items():
        torch.testing.assert_close(criterion.score(UNITS, source), torch.tensor(values))


@pytest.mark.parametrize("n_samples", [2, 3, 40])
def test_obs_is_what_a_ridge_regression_on_the_other_units_leaves(n_samples):
    """With more units than samples too: the damped inverse, entry by entry."""
    gates = drawn(n_samples, 6, seed=n_samples).double()
    fisher = gates.T @ gates / n_samples
    ridge = 0.05 * fisher.diagonal().mean()
    slow = []
    for c in range(6):
        rest = [d for d in range(6) if d != c]
        block = fisher[rest][:, rest] + ridge * torch.eye(5)
        slow.append((fisher[c, c] - fisher[c, rest] @ torch.linalg.solve(block, fisher[rest, c])) / 2)
    group = replace(UNITS, size=6)
    scores = Obs(damping=0.05).score(group, Context({}, gates={"g": gates}))
    torch.testing.assert_close(scores, torch.stack(slow).float())
    assert (scores <= Fisher().score(group, Context({}, gates={"g": gates})) + 1e-6).all()


def test_obd_sums_curvature_times_squared_weight():
    weights, squares = {"w": drawn(4, 3), "p": drawn(3, 2)}, {"w": drawn(4, 3).square(), "p": drawn(3, 2).square()}
    source = Context(weights, squared_gradients=squares)
    slow = [
        sum(h * w * w for h, w in zip(squares["w"][:, c].tolist(), weights["w"][:, c].tolist(), strict=True)) / 2
        + sum(h * w * w for h, w in zip(squares["p"][c].tolist(), weights["p"][c].tolist(), strict=True)) / 2
        for c in range(3)
    ]
    torch.testing.assert_close(Obd().score(UNITS, source), torch.tensor(slow))


def test_scores_of_activity():
    weights = {"w": drawn(4, 3), "p": drawn(3, 2)}
    rows = drawn(3, 3).abs()
    source = Context(weights, activity={"g": Activity(rows[0], rows[1], rows[2])})
    torch.testing.assert_close(ActivationMean().score(UNITS, source), rows[0] / rows[0].mean())
    torch.testing.assert_close(Apoz().score(UNITS, source), rows[1])
    wanda = torch.tensor([sum(abs(weights["w"][:, c])) * rows[2, c] for c in range(3)])
    torch.testing.assert_close(Wanda().score(UNITS, source), wanda / wanda.mean())


def test_scores_of_ranks_products_and_divergences():
    values, ranks = drawn(9, 3), torch.tensor([0.2, 0.6, 1.0])
    source = Context({}, ranks={"g": ranks}, products={"g": values.T @ values}, divergences={"g": ranks})
    torch.testing.assert_close(HRank().score(UNITS, source), ranks / 0.6)
    assert torch.equal(KL().score(UNITS, source), ranks)
    scores = ActivationCosine().score(UNITS, source)
    cosines = functional.cosine_similarity(values[:, :, None], values[:, None, :], dim=0) - 2 * torch.eye(3)
    assert scores.min().item() == pytest.approx(1 - cosines.max().item(), abs=1e-5)
    assert scores.max() == 2
