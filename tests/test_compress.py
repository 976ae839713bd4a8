"""The main job: forms of data, what is measured on what, and what it refuses."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import secateur
from secateur import Budget, CompressConfig, PruneConfig, compress, trace
from secateur.compensation import CompensateConfig
from secateur.compression import MeasureConfig, SplitConfig
from secateur.data import ArrayDataset, DataSplits
from secateur.errors import CaptureError, ConfigError, DataError, GroupError, PlanError
from secateur.measure import evaluate, size_bytes
from secateur.train import TrainConfig

BUDGET = Budget(macs=0.5)


QUICK = CompressConfig(finetune=TrainConfig(epochs=2, num_threads=1), measure=MeasureConfig(repeats=3, max_seconds=0.2))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def samples(n: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
    return x, x[:, :3].argmax(1)


class Named(nn.Module):
    """Takes keyword inputs, as Hugging Face's models do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, features: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": self.body(features)}


X, Y = samples()
PAIRS = [(X[i : i + 20], Y[i : i + 20]) for i in range(0, 60, 20)]
LABELLED = {
    "dataset": TensorDataset(X, Y),
    "array dataset": ArrayDataset(X, Y),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=8),
    "loader with a collate function": DataLoader(
        TensorDataset(X, Y), batch_size=20, collate_fn=lambda rows: tuple(map(torch.stack, zip(*rows, strict=True)))
    ),
    "batches": PAIRS,
    "generator": (pair for pair in PAIRS),
    "splits": DataSplits(
        ArrayDataset(X[:40], Y[:40]), ArrayDataset(X[40:50], Y[40:50]), ArrayDataset(X[50:], Y[50:]), ("a", "b", "c")
    ),
}
UNLABELLED = {"tensor": X, "batches": [x for x, _ in PAIRS], "loader": DataLoader(TensorDataset(X), batch_size=8)}


@pytest.mark.parametrize("form", LABELLED)
def test_labelled_data_is_fine_tuned_and_evaluated(form):
    done = compress(net(), LABELLED[form], budget=BUDGET, config=QUICK, progress=False)
    assert done.report.finetuned.macs == done.report.pruned.macs <= 0.5 * done.report.dense.macs
    assert 0 <= done.report.finetuned.accuracy <= 1
    assert sum(done.report.n_samples.values()) == 60
    assert not done.model.training


@pytest.mark.parametrize("form", UNLABELLED)
def test_unlabelled_data_gives_a_proof_and_no_accuracy(form):
    done = compress(net(), UNLABELLED[form], budget=BUDGET, config=QUICK)
    assert done.report.finetuned is None
    assert done.report.dense.accuracy is None
    assert done.report.max_difference < 1e-5
    assert "verified" in str(done.report)


def test_keyword_inputs():
    batch = [{"features": x, "labels": y} for x, y in PAIRS]
    done = compress(Named(), batch, budget=BUDGET, config=QUICK, progress=False)
    assert done.report.finetuned.accuracy is not None
    assert done.model(features=X)["logits"].shape == (60, 3)


def test_the_report_is_what_can_be_measured_again():
    splits, dense = LABELLED["splits"], net()
    before = {key: t.clone() for key, t in dense.state_dict().items()}
    done = compress(dense, splits, budget=BUDGET, config=QUICK, progress=False)
    assert all(torch.equal(before[key], t) for key, t in dense.state_dict().items())
    found = evaluate(done.model, splits.test)
    report = done.report
    assert (report.finetuned.accuracy, report.finetuned.f1) == (found.accuracy, found.f1)
    assert report.dense.accuracy == evaluate(dense, splits.test).accuracy
    assert report.finetuned.size_bytes == size_bytes(done.model)
    assert report.finetuned.params == sum(p.numel() for p in done.model.parameters())
    assert report.pruned.macs == secateur.trace(done.model, X[:1]).cost().macs
    assert json.loads(json.dumps(report.to_dict()))["dense"]["macs"] == report.dense.macs
    assert report.finetuned.latency_p25_ms <= report.finetuned.latency_ms <= report.finetuned.latency_p75_ms


def test_the_test_split_decides_nothing():
    splits = LABELLED["splits"]
    shuffled = DataSplits(splits.train, splits.val, ArrayDataset(X[50:].flip(0) * 9, Y[50:]), splits.classes)
    a, b = (compress(net(), s, budget=BUDGET, config=QUICK, progress=False) for s in (splits, shuffled))
    assert a.plan == b.plan
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))


def test_the_same_seeds_give_the_same_model_and_other_ones_another_cut():
    a, b = (compress(net(), X, labels=Y, budget=BUDGET, config=QUICK, progress=False) for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    other = CompressConfig(finetune=QUICK.finetune, measure=QUICK.measure, split=SplitConfig(seed=1))
    c = compress(net(), X, labels=Y, budget=BUDGET, config=other, progress=False)
    assert not all(torch.equal(p, q) for p, q in zip(a.model.parameters(), c.model.parameters(), strict=True))


def test_a_criterion_with_gradients_and_a_loss_of_ones_own():
    config = CompressConfig(prune=PruneConfig(criterion="taylor"), finetune=QUICK.finetune, measure=QUICK.measure)
    y = X.sum(1, keepdim=True).repeat(1, 3)  # a regression: no classes, so no accuracy
    done = compress(net(), X, labels=y, budget=BUDGET, config=config, loss=nn.functional.mse_loss, progress=False)
    assert done.plan.config["criterion"]["name"] == "taylor"
    assert done.report.finetuned is not None
    assert done.report.finetuned.accuracy is None


@pytest.mark.parametrize("criterion", ["apoz", "kl_fisher"])
@pytest.mark.parametrize(
    "form", [lambda: X, lambda: [X[:40], X[40:]], lambda: [{"input": X}]], ids=["x", "list", "dict"]
)
def test_criteria_on_unlabelled_data(criterion, form):
    config = CompressConfig(prune=PruneConfig(criterion=criterion), finetune=None, measure=QUICK.measure)
    done = compress(net(), form(), budget=BUDGET, config=config, progress=False)
    assert done.plan.config["criterion"] == {"name": criterion}
    assert done.plan.cost_after.macs <= 0.5 * done.plan.cost_before.macs


def with_nan() -> nn.Module:
    model = net()
    model[2].weight.data[0, 0] = float("nan")
    return model


@pytest.mark.parametrize(
    ("model", "data", "labels", "error", "message"),
    [
        (net, X[:0], None, DataError, r"shape \(0, 4\), without samples"),
        (net, [], None, DataError, "no batches"),
        (net, TensorDataset(X[:0], Y[:0]), None, DataError, "no samples"),
        (net, X, Y[:5], DataError, "do not fit"),
        (net, X[:2], Y[:2], DataError, "too few"),
        (net, X * float("nan"), None, DataError, "first sample holds NaN"),
        (net, 3, None, DataError, "data is a int"),
        (net, ["a"], None, DataError, "A batch is a str"),
        (net, [X[:3], X[:3, :2]], None, DataError, "can't be put together"),
        (net, (X, Y), None, DataError, "go into labels="),
        (net, PAIRS, Y, ConfigError, "labels go with a tensor"),
        (net, X[:, :3], None, CaptureError, r"failed in '0'.*\[1, 3\]"),
        (net, X, Y + 5, DataError, "Labels run from 5"),
        (with_nan, X, None, GroupError, r"NaN or Inf in '2\.weight'"),
        (nn.ReLU, X, None, CaptureError, "has no parameters"),
        (lambda: nn.Linear(4, 3), X, None, PlanError, "Nothing in this model can be pruned"),
    ],
)
def test_what_is_refused(model, data, labels, error, message):
    with pytest.raises(error, match=message):
        compress(model(), data, labels=labels, budget=BUDGET, config=QUICK, progress=False)


def test_an_empty_budget_is_refused():
    with pytest.raises(ConfigError, match="An empty budget"):
        compress(net(), X, budget=Budget())


def test_inputs_alone_are_compensated_by_default():
    """Unlabelled data: nearer to the dense outputs than magnitude pruning at the same budget, and no labels needed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    x = torch.randn(512, 6)
    budget = Budget(macs=0.5)
    by_default = compress(net, x, budget=budget, progress=False)
    by_l2 = CompressConfig(prune=PruneConfig(), compensate=None)
    by_magnitude = compress(net, x, budget=budget, config=by_l2, progress=False)
    errors = [(done.model(x) - net(x)).square().mean() for done in (by_default, by_magnitude)]
    assert errors[0] < 0.2 * errors[1]
    assert by_default.plan.config["criterion"]["name"] == "elimination"
    assert "solved for again" in "\n".join(by_default.report.notes)


@pytest.mark.parametrize(
    ("settings", "has_labels", "criterion", "is_compensated", "is_tuned"),
    [
        ({}, True, "l2", False, True),
        ({}, False, "elimination", True, False),
        ({"finetune": None}, True, "elimination", True, False),
        ({"prune": PruneConfig(criterion="l1")}, False, "l1", True, False),
        ({"prune": PruneConfig(criterion="l1"), "compensate": None}, False, "l1", False, False),
        ({"compensate": CompensateConfig()}, True, "l2", True, True),
    ],
)
def test_what_settings_leave_open_follows_the_data(settings, has_labels, criterion, is_compensated, is_tuned):
    config = CompressConfig(measure=QUICK.measure, **settings)
    done = compress(net(), X, labels=Y if has_labels else None, budget=BUDGET, config=config, progress=False)
    assert done.plan.config["criterion"]["name"] == criterion
    assert ("solved for again" in "\n".join(done.report.notes)) == is_compensated
    assert (done.report.finetuned is not None) == is_tuned


def test_fine_tuning_that_labels_are_missing_for_is_said():
    assert "no labels" in "\n".join(compress(net(), X, budget=BUDGET, config=QUICK, progress=False).report.notes)


def test_steps_multiply_to_the_budget():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
    config = CompressConfig(n_rounds=3)
    done = compress(net, torch.randn(256, 6), budget=Budget(macs=0.4), config=config, progress=False)
    assert "solved for again" in "\n".join(done.report.notes)
    assert done.plan.cost_before.macs * 0.38 <= done.plan.cost_after.macs <= done.plan.cost_before.macs * 0.4
    assert trace(done.model, torch.randn(1, 6)).cost().macs == done.plan.cost_after.macs
    with pytest.raises(ConfigError, match="Rounds take fractions"):
        compress(net, torch.randn(256, 6), budget=Budget(size_bytes=9000), config=config, progress=False)
