"""The sensitivity scan against models cut by hand; its file; its plot; what allocation makes of it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import secateur
from secateur.allocate import curve_of
from secateur.criteria import (
    L2,
    Context,
    KLFisher,
    SensitivityScan,
    cross_entropy,
    from_dict,
    make_criterion,
    measure,
    score_groups,
    to_dict,
)
from secateur.errors import ConfigError, FileError
from secateur.sensitivity import (
    Scanned,
    Sensitivity,
    draw_sensitivity,
    read_sensitivity,
    scan_sensitivity,
    sensitivity_points,
    write_sensitivity,
)


def build():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    x, y = torch.randn(20, 4), torch.randint(3, (20,))
    groups = secateur.trace(model, x[:1]).prunable
    return model, x, y, groups, score_groups(groups, make_criterion("l2"), Context.of(model))


def without(model, group, keep):
    """The model with all weights of dropped units zero, which is the same for a ReLU between linear layers."""
    cut = copy.deepcopy(model)
    with torch.no_grad():
        for m in group.members:
            rows = m.view(cut.get_parameter(m.key))
            rows[[c for c in range(group.size) if c not in keep]] = 0
    return cut


@pytest.mark.parametrize("is_labelled", [True, False])
def test_the_rise_is_that_of_models_cut_by_hand(is_labelled):
    """With labels by cross entropy, without by the KL divergence from the dense predictions. Batches differ in size."""
    model, x, y, groups, scores = build()
    batches = [(x[:12], y[:12]), (x[12:], y[12:])] if is_labelled else [x[:12], x[12:]]
    found = scan_sensitivity(model, scores, batches, levels=(0.75, 0.3), loss=cross_entropy if is_labelled else None)

    def loss(cut):
        with torch.no_grad():
            if is_labelled:
                return cross_entropy(cut(x), y).item()
            full = model(x).double().log_softmax(1)
            return (full.exp() * (full - cut(x).double().log_softmax(1))).sum(1).mean().item()

    assert found.dense == pytest.approx(loss(model), abs=1e-6)
    for group in groups:
        scanned = found.groups[group.name]
        assert scanned.kept == tuple(round(level * group.size) for level in (0.3, 0.75))
        assert scanned.order == tuple(scores[group.name].sort(descending=True).indices.tolist())
        for k, rise in zip(scanned.kept, scanned.rise, strict=True):
            assert rise == pytest.approx(loss(without(model, group, scanned.order[:k])) - loss(model), abs=1e-5)


def test_curves_go_through_the_measured_points_and_straight_between():
    scanned = Scanned(order=(3, 1, 0, 2, 4, 5), kept=(2, 4), rise=(0.9, 0.1))
    found = Sensitivity(1.0, {"a": scanned, "one": Scanned((0,), (), ())}).curves()
    torch.testing.assert_close(
        found["a"].errors, torch.tensor([1.7, 1.3, 0.9, 0.5, 0.1, 0.05, 0.0], dtype=torch.float64)
    )
    assert found["a"].order.tolist() == [3, 1, 0, 2, 4, 5]
    assert found["one"].errors.tolist() == [0, 0]


def test_a_plan_from_curves_spares_the_sensitive_group():
    model, x, _, groups, scores = build()
    first, second = (group.name for group in groups)
    steep, flat = (curve_of(torch.full((n,), s)) for n, s in ((8, 10.0), (6, 0.1)))
    config = secateur.PruneConfig(method="lagrangian")
    made = secateur.plan(model, x, secateur.Budget(width=0.72), config, curves={first: steep, second: flat})
    assert {g.name: len(g.keep) for g in made.groups} == {first: 8, second: 2}
    scanned = scan_sensitivity(model, scores, [x]).curves()
    made = secateur.plan(model, x, secateur.Budget(macs=0.6), secateur.PruneConfig(method="dynamic"), curves=scanned)
    for kept in made.groups:
        assert set(kept.keep) == set(scanned[kept.name].order[: len(kept.keep)].tolist())


@pytest.mark.parametrize("ranking", [L2(), KLFisher()])
def test_the_scan_is_a_criterion(ranking):
    """By name in a plan, the same curves as by hand; a ranking that measures on data gets it."""
    model, x, _, groups, _ = build()
    criterion = SensitivityScan(criterion=ranking, levels=(0.5,))
    scores = score_groups(groups, ranking, Context.of(model, **measure(model, groups, ranking.needs, [x])))
    by_hand = scan_sensitivity(model, scores, [x], levels=(0.5,)).curves()
    found = criterion.curves(model, [x]).curves
    for name, curve in by_hand.items():
        assert torch.equal(found[name].errors, curve.errors)
        assert torch.equal(found[name].order, curve.order)
    config = secateur.PruneConfig(criterion=criterion, method="dynamic")
    made = secateur.plan(model, x, secateur.Budget(macs=0.6), config, data=[x])
    assert made.cost_after.macs <= 0.6 * made.cost_before.macs
    assert from_dict(to_dict(criterion)) == criterion


@pytest.mark.parametrize("setting", [{"levels": ()}, {"levels": (0.5, 1.0)}, {"criterion": None}])
def test_a_scan_of_nothing_is_refused(setting):
    with pytest.raises(ConfigError, match=r"levels=.* must lie within|criterion=None does not rank units"):
        SensitivityScan(**setting)


def test_a_scan_is_kept_by_its_content(tmp_path, monkeypatch):
    model, x, y, _, scores = build()
    found = scan_sensitivity(model, scores, [(x, y)], levels=(0.5,), loss=cross_entropy, cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    assert read_sensitivity(path) == found
    monkeypatch.setattr("secateur.sensitivity.scan._scan", lambda *args: pytest.fail("it was measured again"))
    again = scan_sensitivity(model, scores, [(x, y)], levels=(0.5,), loss=cross_entropy, cache=tmp_path / "cache")
    assert again == found


@pytest.mark.parametrize("what", ["weights", "data", "levels", "loss", "scores"])
def test_what_changes_the_result_is_measured_again(tmp_path, what):
    model, x, y, _, scores = build()
    args = {"levels": (0.5,), "loss": cross_entropy, "cache": tmp_path}
    scan_sensitivity(model, scores, [(x, y)], **args)
    if what == "weights":
        model[0].weight.data[0, 0] += 1e-3
    elif what == "data":
        x = x + 1e-3
    elif what == "levels":
        args["levels"] = (0.25, 0.5)
    elif what == "loss":
        args["loss"] = None
    else:
        scores = {name: values.flip(0) for name, values in scores.items()}
    scan_sensitivity(model, scores, [(x, y)], **args)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "[]", '{"dense": 1.0}', '{"dense": 1.0, "groups": {"a": {"order": [0]}}}'])
def test_a_damaged_file_is_refused(tmp_path, text):
    path = tmp_path / "scan.json"
    path.write_text(text)
    with pytest.raises(FileError, match=r"'.*scan\.json' is no sensitivity scan: .* Delete it to measure again\."):
        read_sensitivity(path)


def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path, found = tmp_path / "scan.json", Sensitivity(0.5, {"a": Scanned((1, 0), (1,), (0.25,))})
    write_sensitivity(found, path)
    before = path.read_bytes()
    assert json.loads(before)["groups"]["a"]["order"] == [1, 0]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_sensitivity(Sensitivity(0.7, {}), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["scan.json"]


def test_the_plot_shows_each_group_once_most_sensitive_first():
    found = Sensitivity(0.5, {"a": Scanned((1, 0), (1,), (0.25,)), "b": Scanned((2, 1, 0, 3), (1, 3), (2.0, 1.0))})
    points = sensitivity_points(found)
    assert points.lines == (("b", (0.25, 0.75, 1.0), (2.0, 1.0, 0.0)), ("a", (0.5, 1.0), (0.25, 0.0)))
    calls = []

    class Axis:
        def __getattr__(self, name):
            return lambda *args, **kwargs: calls.append((name, args, kwargs.get("label")))

    draw_sensitivity(points, Axis())
    assert [(name, label) for name, _, label in calls[:3]] == [("axhline", "dense (0.5)"), ("plot", "b"), ("plot", "a")]
    assert {name for name, _, _ in calls} >= {"set_xlabel", "set_ylabel", "legend"}


@pytest.mark.parametrize(
    ("batches", "levels", "text"),
    [
        ([], (0.5,), "There is no batch to run the model on"),
        ([torch.zeros(2, 4)], (1.0,), r"The level 1.0 is outside \(0, 1\)"),
        ([torch.zeros(2, 4)], (0.5,), "Batch 0 has no labels"),
    ],
)
def test_bad_settings_are_refused(batches, levels, text):
    model, _, _, _, scores = build()
    with pytest.raises(ConfigError, match=text):
        scan_sensitivity(model, scores, batches, levels=levels, loss=cross_entropy)
