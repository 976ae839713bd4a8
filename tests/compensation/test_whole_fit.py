"""The last fit: all weights together, to the outputs of the dense network."""

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur import Budget, PruneConfig, apply, plan
from secateur.compensation import CompensateConfig, ReconstructConfig, compensate_
from secateur.compensation.distance import distance
from secateur.errors import ConfigError, DataError

VOCABULARY = 11


class Tagger(nn.Module):
    """Logits of each token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 6)
        self.up, self.down, self.head = nn.Linear(6, 24), nn.Linear(24, 6), nn.Linear(6, VOCABULARY)
        self.norm = nn.LayerNorm(6)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(self.norm(x + self.down(torch.tanh(2 * self.up(x)))))


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(VOCABULARY, (64, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kind", "precision"), [("kl", "fp32"), ("mse", "fp32"), ("kl", "bf16")])
def test_the_last_fit_brings_the_outputs_nearer(kind: str, precision: str, ids: Tensor) -> None:
    torch.manual_seed(0)
    model = Tagger()
    dense = copy.deepcopy(model.state_dict())
    made = plan(model, ids, Budget(width=0.3), PruneConfig(ignore=("embed",)))
    found = {}
    for end_epochs in (0, 20):
        small = apply(model, made)
        settings = ReconstructConfig(epochs=1, end_epochs=end_epochs, distance=kind, precision=precision)  # type: ignore[arg-type]
        report = compensate_(model, small, made, ids.split(8), CompensateConfig(reconstruct=settings))
        with torch.no_grad():
            found[end_epochs] = float(distance(kind, model(ids), small(ids)))  # type: ignore[arg-type]
        assert torch.equal(small.embed.weight, model.embed.weight)
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    assert report.segments[-1].after < report.segments[-1].before
    assert found[20] < 0.8 * found[0]
    assert all(torch.equal(t, dense[key]) for key, t in model.state_dict().items())


def test_kl_is_the_sum_over_outcomes() -> None:
    a, b = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = sum(
        float(p * (p / q).log())
        for x, y in zip(a, b, strict=True)
        for p, q in zip(x.softmax(0), y.softmax(0), strict=True)
    )
    assert float(distance("kl", a, b)) == pytest.approx(expected / 3)


@pytest.mark.parametrize(
    "wrong", [{"epochs": -1}, {"end_epochs": -1}, {"end_lr": 0.0}, {"distance": "l1"}, {"precision": "int8"}]
)
def test_settings_are_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ReconstructConfig(**wrong)  # type: ignore[arg-type]


class Pooled(Tagger):
    """One row of logits for each sample, so that all outputs take less room than the weights."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).mean(1)


@pytest.mark.parametrize("model_class", [Tagger, Pooled])
def test_segments_may_be_left_out(model_class: type[Tagger], ids: Tensor) -> None:
    """What is reported of the last fit alone is the distance of the outputs on the batch that it did not see."""
    torch.manual_seed(0)
    model = model_class()
    batches = ids[:32].split(8)
    made = plan(model, ids, Budget(width=0.3), PruneConfig(ignore=("embed",)))
    small = apply(model, made)
    settings = ReconstructConfig(epochs=0, end_epochs=20)
    (only,) = compensate_(model, small, made, batches, CompensateConfig(reconstruct=settings)).segments
    with torch.no_grad():
        assert only.after == pytest.approx(float(distance("kl", model(batches[-1]), small(batches[-1]))), rel=1e-4)
    assert only.after < 0.8 * only.before


@pytest.mark.parametrize(("model_class", "precision"), [(Tagger, "fp32"), (Tagger, "bf16"), (Pooled, "fp32")])
def test_the_last_fit_takes_batches_of_its_own(model_class: type[Tagger], precision: str) -> None:
    """More samples than the closed form had help on those that nothing has seen, and judge the fit."""
    torch.manual_seed(0)
    model = model_class()
    few, many, unseen = (torch.randint(VOCABULARY, (n, 5)) for n in (16, 512, 256))
    made = plan(model, few, Budget(width=0.3), PruneConfig(ignore=("embed",)))
    found, reports = [], []
    settings = ReconstructConfig(epochs=0, end_epochs=10, precision=precision)  # type: ignore[arg-type]
    for last in (None, many.split(8)):
        small = apply(model, made)
        config = CompensateConfig(reconstruct=settings)
        reports.append(compensate_(model, small, made, few.split(8), config, end_batches=last))
        with torch.no_grad():
            found.append(float(distance("kl", model(unseen), small(unseen))))
    assert found[1] < 0.7 * found[0]
    if precision == "fp32":  # errors this small are those of bfloat16
        judged = torch.cat(many.split(8)[-8:])
        with torch.no_grad():
            expected = float(distance("kl", model(judged), small(judged)))
        assert reports[1].segments[-1].after == pytest.approx(expected, rel=1e-3)


def test_batches_of_the_last_fit_have_the_shape_of_the_others(ids: Tensor) -> None:
    model = Tagger()
    made = plan(model, ids, Budget(width=0.5), PruneConfig(ignore=("embed",)))
    small = apply(model, made)
    before = copy.deepcopy(small.state_dict())
    with pytest.raises(DataError, match=r"\(8, 5\).* and .*\(4, 5\)"):
        compensate_(model, small, made, ids.split(8), end_batches=ids.split(4))
    assert all(torch.equal(t, before[key]) for key, t in small.state_dict().items())


class Scattered(Tagger):
    """Writes what a product gave into a tensor of its own, which takes its own type alone."""

    def forward(self, ids: Tensor) -> Tensor:
        out = super().forward(ids)
        return torch.zeros(out.shape).index_put((torch.arange(len(out)),), out) + self.embed(ids).sum()


def test_an_operator_that_does_not_run_in_the_precision_is_an_error(ids: Tensor) -> None:
    torch.manual_seed(0)
    model = Scattered()
    made = plan(model, ids, Budget(width=0.3), PruneConfig(ignore=("embed",)))
    small = apply(model, made)
    config = CompensateConfig(reconstruct=ReconstructConfig(epochs=0, end_epochs=1, precision="bf16"))
    with pytest.raises(ConfigError, match="precision='fp32'"):
        compensate_(model, small, made, ids.split(8), config)
