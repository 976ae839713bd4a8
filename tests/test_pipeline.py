"""Several techniques in a row: legal orders save, load and compute the same; illegal ones are refused; kills resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.allocate import Budget
from secateur.coding import Code, Mask, attach_, bake, codable
from secateur.compression import CompressConfig, MeasureConfig, run_steps
from secateur.errors import ConfigError, FileError
from secateur.planning import PruneConfig
from secateur.steps import Context, Done
from secateur.steps.finetune import Distill, Finetune
from secateur.steps.order import check_order
from secateur.steps.prune import Prune
from secateur.surgery import copy_model
from secateur.train.config import TrainConfig

QUICK = CompressConfig(measure=MeasureConfig(repeats=3, max_seconds=0.1, n_threads=1))
TRAIN = TrainConfig(epochs=2, lr=0.01, batch_size=32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class HalfMask:
    """A step of the tests' own: the smaller half of each weight goes."""

    name: ClassVar[str] = "half_mask"
    accepts: ClassVar[frozenset[str]] = frozenset()
    leaves: ClassVar[frozenset[str]] = frozenset({"masked"})
    needs_labels: ClassVar[bool] = False

    def run(self, model: nn.Module, context: Context) -> Done:
        small = copy_model(model)
        masks = {key: Mask(w.abs() > w.abs().median()) for key, w in codable(small)[0].items()}
        for key, mask in masks.items():
            attach_(small, key, mask)
        return Done(small, Code.of(masks), notes=("half of the weights are zero",))


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > x[:, 1]).long()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2)).eval()


def run(steps: list[Any], **options: Any) -> Any:
    x, y = data()
    return run_steps(net(), x, steps, labels=y, config=QUICK, progress=False, **options)


STEPS = [Prune(budget=Budget(macs=0.5)), HalfMask(), Finetune(train=TRAIN), Prune(budget=Budget(macs=0.6))]


def test_every_step_is_measured_and_the_whole_loads_again(tmp_path: Path) -> None:
    done = run(STEPS)
    report = done.report
    assert list(report.stages()) == ["dense", "1 prune", "2 half_mask", "3 finetune", "4 prune"]
    assert [step.notes for step in report.steps][1] == ("half of the weights are zero",)
    assert report.steps[0].measured.macs <= 0.5 * report.dense.macs
    assert report.steps[1].measured.size_bytes < report.steps[0].measured.size_bytes
    assert report.steps[3].measured.macs <= 0.6 * report.steps[2].measured.macs
    assert [edit.kind for edit in done.edits.steps] == ["prune", "code", "prune"]
    folder = secateur.save(done.model, tmp_path / "small", plan=done.edits)
    again = secateur.load(folder, net)
    x = data()[0]
    assert torch.equal(again(x), done.model(x))
    assert (folder / "model.safetensors").stat().st_size == report.steps[3].measured.size_bytes
    torch.testing.assert_close(bake(again)(x), done.model(x))


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(STEPS)
    place = tmp_path / "steps"

    def killed(self: Prune, model: nn.Module, context: Context) -> Done:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(HalfMask, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run(STEPS, checkpoints=place)
    assert [path.name for path in place.iterdir()] == ["1-prune"]
    with pytest.raises(FileError, match="another model, other data or other steps"):
        run([Prune(budget=Budget(macs=0.4)), *STEPS[1:]], checkpoints=place)
    with monkeypatch.context() as patch:
        patch.setattr(Prune, "run", killed)  # step 1 isn't done again
        with pytest.raises(KeyboardInterrupt):
            run(STEPS, checkpoints=place)
    assert [path.name for path in place.iterdir()] == ["3-finetune"]
    resumed = run(STEPS, checkpoints=place)
    x = data()[0]
    assert torch.equal(resumed.model(x), whole.model(x))
    assert resumed.edits == whole.edits
    assert [s.measured.accuracy for s in resumed.report.steps] == [s.measured.accuracy for s in whole.report.steps]
    assert not place.exists()


def test_an_impossible_order_is_refused_before_anything_is_done() -> None:
    with pytest.raises(ConfigError, match=r"Step 2 \(half_mask\) can't follow step 1 \(half_mask\).*masked weights"):
        run([HalfMask(), HalfMask()])
    with pytest.raises(ConfigError, match="no steps"):
        run([])
    with pytest.raises(ConfigError, match=r"Step 1 \(finetune\) needs labels"):
        check_order([Finetune()], has_labels=False)
    with pytest.raises(ConfigError, match=r"Step 1 \(prune\) needs labels"):
        check_order([Prune(prune=PruneConfig(criterion="taylor"))], has_labels=False)
    check_order([Prune(prune=PruneConfig(criterion=criterion)) for criterion in ("l2", "kl_fisher")], has_labels=False)


@pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_dense_model_guides_fine_tuning(is_compiled: bool) -> None:
    """With its whole weight on the dense model's logits, a copy of that model has nothing to learn."""
    train = dataclasses.replace(TRAIN, epochs=1, weight_decay=0.0, is_compiled=is_compiled)
    guided = run([Finetune(train=train, distill=Distill(weight=1.0))])
    torch.testing.assert_close(guided.model(data()[0]), net()(data()[0]), rtol=1e-3, atol=1e-3)


def test_distillation_is_the_divergence_of_softened_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(2, 5, 3, generator=generator)
    p, q = (torch.softmax(t / 4.0, -1) for t in (teacher, student))
    expected = 16 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(Distill(temperature=4.0).loss(teacher, student), expected)
