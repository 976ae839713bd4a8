"""Low rank: exact at full rank, as near as can be below it, and ordinary layers afterwards."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import secateur
from secateur.criteria.gradients import logits_of
from secateur.edits import Edits, Prune
from secateur.errors import ConfigError, GroupError, PlanError, RegistryError
from secateur.lowrank import FORMS, Factored, Factors, merge
from secateur.lowrank.layers import kernel_of
from secateur.lowrank.sites import Site, collect_grams
from secateur.models import DigitsCNN
from secateur.steps import STEPS, Context, Factorize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def context(model: nn.Module, x: Tensor, n_batches: int = 2) -> Context:
    return Context(dense=model, inputs=lambda n: x[:n], calibration=lambda: iter(x.chunk(n_batches)))


def chain(layer: nn.Module, form: str, rank: tuple[int, ...], gram: Tensor | None = None) -> Factored:
    made = Factored.blank(layer, form, rank)
    made.fill_(FORMS[form]().take_apart(kernel_of(layer).detach().double(), gram).factors(rank))
    return made


LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (4, 7)),
    "1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
    "2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8)),
    "oblong": (lambda: nn.Conv2d(4, 6, (3, 5), stride=(2, 1), padding=(0, 2), dilation=(1, 2)), (2, 4, 11, 12)),
    "grouped": (lambda: nn.Conv2d(8, 12, 3, groups=4, padding=1), (2, 8, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    "same": (lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=2, bias=False), (2, 4, 9, 9)),
    "valid": (lambda: nn.Conv2d(4, 6, 3, padding="valid"), (2, 4, 9, 9)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 6, 7)),
    "circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 6, 7)),
    "3d": (lambda: nn.Conv3d(3, 4, (1, 3, 2), padding=(0, 1, 1)), (1, 3, 4, 5, 6)),
}


def full_rank(form: str, shape: torch.Size) -> tuple[int, ...]:
    _, o, i, *window = shape
    if form == "tucker":
        return min(o, i * math.prod(window)), min(i, o * math.prod(window))
    if form == "spatial":
        return (min(i * window[0], o * window[1]),)
    return (min(o, i * math.prod(window)),)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("form", ["svd", "spatial", "tucker"])
def test_full_rank_is_exact_and_merges_back(form: str, name: str) -> None:
    torch.manual_seed(0)
    make, size = LAYERS[name]
    layer, x = make().double(), random(*size)
    kernel = kernel_of(layer)
    if reason := FORMS[form]().fault(kernel.shape):
        with pytest.raises(PlanError, match=reason):
            Factored.blank(layer, form, (1,))
        return
    made = chain(layer, form, full_rank(form, kernel.shape))
    torch.testing.assert_close(made(x), layer(x))
    again = made.merged()
    assert type(again) is type(layer)
    torch.testing.assert_close(again(x), layer(x))
    torch.testing.assert_close(again.weight, layer.weight)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_matrices_reach_the_eckart_young_error(shape: tuple[int, int]) -> None:
    layer = nn.Linear(shape[1], shape[0]).double()
    layer.weight.data = random(*shape)
    values = torch.linalg.svdvals(layer.weight.detach())
    parts = FORMS["svd"]().take_apart(kernel_of(layer).detach(), None)
    for (rank,), error in parts.levels():
        made = chain(layer, "svd", (rank,))
        lost = (made.merged().weight - layer.weight).detach().square().sum()
        torch.testing.assert_close(lost, values[rank:].square().sum(), rtol=0, atol=1e-12)
        assert error == pytest.approx(float(lost / layer.weight.detach().square().sum()), abs=1e-12)
        first, second = made.factors()
        torch.testing.assert_close(first.flatten(2).norm(dim=2), second.flatten(2).norm(dim=1))


@pytest.mark.parametrize("form", ["svd", "spatial"])
def test_each_group_of_a_convolution_reaches_it_too(form: str) -> None:
    layer = nn.Conv2d(8, 12, 3, groups=2).double()
    lost = (chain(layer, form, (2,)).merged().weight - layer.weight).detach().square().sum()
    expected = 0.0
    for weight in layer.weight.detach().chunk(2):  # slow and obvious: one group after another
        matrix = weight.flatten(1) if form == "svd" else weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)
        expected += float(torch.linalg.svdvals(matrix)[2:].square().sum())
    assert float(lost) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["linear", "2d", "oblong", "grouped", "reflect", "3d"])
def test_aware_factors_are_nearest_on_what_the_layer_reads(name: str) -> None:
    """No other kernel of that rank gives outputs nearer to the layer's."""
    torch.manual_seed(0)
    make, size = LAYERS[name]
    layer = make().double()
    x = torch.cat([random(*size, seed=s) * torch.linspace(0.1, 3, size[-1], dtype=torch.float64) for s in range(20)])
    aware = chain(layer, "svd", (2,), gram_of(layer, x))
    target = layer(x).detach()

    def error(made: nn.Module) -> float:
        return float((made(x) - target).detach().square().sum())

    outs = target - (0 if layer.bias is None else layer.bias.detach().reshape(-1, *(1,) * (target.dim() - 2)))
    axis = 1 if target.dim() > 2 else -1
    best = 0.0  # slow and obvious: the outputs of each group, projected on their leading directions
    for part in outs.movedim(axis, 0).flatten(1).chunk(getattr(layer, "groups", 1)):
        best += float(torch.linalg.svdvals(part)[2:].square().sum())
    assert error(aware) == pytest.approx(best, rel=1e-4)
    assert error(aware) < error(chain(layer, "svd", (2,)))


@pytest.mark.parametrize("name", LAYERS)
def test_grams_are_those_of_what_kernels_multiply(name: str) -> None:
    """sum y y^T = W (sum x x^T) W^T for the outputs y without bias."""
    make, size = LAYERS[name]
    layer, x = make().double(), random(*size)
    kernel = kernel_of(layer).detach().flatten(2)
    layer.bias = None
    outs = layer(x).detach().movedim(1 if x.dim() > 2 else -1, 0).flatten(1)
    expected = torch.stack([part @ part.T for part in outs.chunk(len(kernel))])
    torch.testing.assert_close(kernel @ gram_of(layer, x) @ kernel.mT, expected)


def gram_of(layer: nn.Module, x: Tensor) -> Tensor:
    return collect_grams(layer, [Site("", layer)], [x], max_rows=10**9)[""]


def test_tucker_errors_are_those_of_its_kernels_and_fall() -> None:
    layer = nn.Conv2d(5, 6, 3).double()
    parts = FORMS["tucker"]().take_apart(kernel_of(layer).detach(), None)
    levels = parts.levels()
    for rank, error in levels:
        lost = (chain(layer, "tucker", rank).merged().weight - layer.weight).detach().square().sum()
        assert error == pytest.approx(float(lost / layer.weight.detach().square().sum()), abs=1e-9)
    assert [e for _, e in levels] == sorted((e for _, e in levels), reverse=True)
    assert levels[-1][0] == (6, 5)


@pytest.mark.parametrize("groups", [1, 2])
def test_cp_finds_kernels_of_low_rank(groups: int) -> None:
    layer = nn.Conv2d(6 * groups, 8 * groups, 3, padding=1, groups=groups).double()
    terms = random(groups, 8, 3, seed=1), random(groups, 6, 3, seed=2), random(groups, 9, 3, seed=3)
    layer.weight.data = torch.einsum("gor,gir,gkr->goik", *terms).reshape(layer.weight.shape)
    made = chain(layer, "cp", (3,))
    x = random(2, 6 * groups, 5, 5)
    torch.testing.assert_close(made(x), layer(x), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made.merged()(x), made(x))
    assert made[1].groups == 3 * groups


def test_a_chain_prunes_and_its_rank_is_a_group() -> None:
    torch.manual_seed(0)
    model = DigitsCNN().eval()
    x = torch.randn(16, 1, 8, 8)
    done = Factorize(params=0.5).run(model, context(model, x))
    ranks = [g for g in secateur.trace(done.model, x).prunable if ".0 " in g.name]
    assert len(ranks) == len(done.edit.layers)
    plan = secateur.plan(done.model, x, secateur.Budget(params=0.5))
    small = secateur.apply(done.model, plan)  # proven by the numeric law
    torch.testing.assert_close(merge(small)(x), small(x), atol=1e-5, rtol=1e-4)
    edits = Edits().then(done.edit).then(Prune(plan))
    again = Edits.from_json(edits.to_json()).replay(DigitsCNN()).eval()
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))


def n_params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def n_macs(model: nn.Module, x: Tensor) -> int:
    return secateur.trace(model, x).cost().macs


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", [{"params": 0.6}, {"macs": 0.6}, {"params": 0.7, "macs": 0.7}], ids=str)
def test_budgets_are_met(asked: dict[str, float], form: str) -> None:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(8, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, 3, stride=2, padding=1), nn.ReLU()]
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    x = torch.randn(8, 8, 8, 8)
    done = Factorize(form=form, **asked).run(model, context(model, x))
    if "params" in asked:
        assert n_params(done.model) <= asked["params"] * n_params(model)
    if "macs" in asked:
        assert n_macs(done.model, x[:1]) <= asked["macs"] * n_macs(model, x[:1])
    assert not any(isinstance(m, Factored) for m in model.modules())  # the original is as it was


def test_energy_keeps_what_it_says_or_the_layer() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 3))
    x = torch.randn(500, 32)
    done = Factorize(energy=0.8).run(model, context(model, x))
    (rank,) = done.edit.layers["0"][1]
    target = functional.linear(x, model[0].weight).detach()

    @torch.no_grad()
    def kept(chain: nn.Module) -> float:
        return 1 - float((chain[1].weight @ chain[0].weight @ x.T - target.T).square().sum() / target.square().sum())

    assert kept(done.model[0]) == pytest.approx(1 - done.facts["layers"]["0"]["error"], abs=1e-4)
    assert kept(done.model[0]) >= 0.8 > kept(Factorize(energy=0.7).run(model, context(model, x)).model[0])
    assert rank * (32 + 24) < 32 * 24
    whole = Factorize(energy=0.9999).run(model, context(model, x))
    assert whole.edit is None
    assert dict(whole.skipped)["0"] == "worth more whole"


def test_what_is_left_alone_has_a_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.seen = nn.Linear(16, 16), nn.Linear(16, 16)
            self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
            self.two.weight = self.one.weight
            self.up = nn.ConvTranspose1d(1, 1, 3, padding=1)
            self.last, self.kept, self.tiny = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 1)
            self.attention = nn.MultiheadAttention(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = functional.linear(x, self.read.weight)
            x = self.seen(x)[:, : self.seen.in_features]  # a number that a chain doesn't have
            x, _ = self.attention(x, x, x)
            return self.tiny(self.kept(self.last(self.up(self.two(self.one(x)).unsqueeze(1)).squeeze(1))))

    torch.manual_seed(0)
    model, x = Odd().eval(), torch.randn(8, 16)
    done = Factorize(energy=0.5, ignore=("kept",)).run(model, context(model, x))
    assert list(done.edit.layers) == ["last"]
    reasons = dict(done.skipped)
    assert {fqn: reason.split(":")[0] for fqn, reason in reasons.items()} == {
        "read": "its forward is not called",
        "seen": "the model can't run with it factored",
        "one": "tied to another weight",
        "two": "tied to another weight",
        "up": "transposed convolution",
        "kept": "ignore pattern 'kept' matches",
        "tiny": "no rank saves parameters without costing MACs",
        "attention.out_proj": "NonDynamicallyQuantizableLinear is more than a plain layer",
    }
    again = Factorize(energy=0.5, only=("last*",)).run(done.model, context(model, x))
    assert dict(again.skipped)["last.0"] == "part of a chain already; merge first"
    with pytest.raises(GroupError, match="'seen' holds or reads NaN"):
        Factorize(energy=0.5).run(model, context(model, x * torch.nan))


def test_gpt2_with_its_transposed_layers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    tokens = torch.randint(0, 50, (8, 16))
    ids = Context(dense=model, inputs=lambda n: {"input_ids": tokens[:n]}, calibration=lambda: [{"input_ids": tokens}])
    done = Factorize(params=0.8).run(model, ids)
    assert done.edit.layers.keys() <= {f"transformer.h.{i}.{n}" for i in (0, 1) for n in NAMES}
    assert n_params(done.model) <= 0.8 * n_params(model)
    out, merged = (logits_of(m(tokens)) for m in (done.model, merge(done.model)))
    torch.testing.assert_close(out, merged, atol=1e-5, rtol=1e-4)


NAMES = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


def test_settings_and_edits_are_checked() -> None:
    assert STEPS["factorize"] is Factorize
    for settings in ({}, {"energy": 0.9, "params": 0.5}):
        with pytest.raises(ConfigError, match="Say either energy"):
            Factorize(**settings)
    with pytest.raises(ConfigError, match="outside"):
        Factorize(energy=1.5)
    with pytest.raises(RegistryError, match=r"No form 'qr'\. Known: cp, spatial, svd, tucker"):
        Factorize(energy=0.5, form="qr")
    with pytest.raises(PlanError, match="no layer 'x'"):
        Factors({"x": ("svd", (1,))}).replay(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(PlanError, match="ReLU is no layer for it"):
        Factors({"0": ("svd", (1,))}).replay(nn.Sequential(nn.ReLU()))
    with pytest.raises(PlanError, match="no such rank"):
        Factors({"0": ("svd", (10**9,))}).replay(nn.Sequential(nn.Linear(2, 2)))
    text = Edits().then(Factors({"0": ("svd", (1,))})).to_json()
    for bad in (text.replace("svd", "qr"), text.replace('"rank"', '"ranks"'), text.replace("  1\n", "  -1\n")):
        assert bad != text
        with pytest.raises(PlanError, match="not a list of edits"):
            Edits.from_json(bad)


def test_code_that_reads_a_factored_weight_gets_the_whole_one() -> None:
    """nn.TransformerEncoderLayer hands the weights of its layers to one kernel, where it may."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    x = torch.randn(2, 5, 8)
    context = Context(dense=model, inputs=lambda n: x, calibration=lambda: [x])
    small = Factorize(energy=0.6, is_aware=False).run(model, context).model
    assert isinstance(small[0].linear1, Factored)
    with torch.no_grad():
        torch.testing.assert_close(small(x), merge(small)(x))
    torch.testing.assert_close(small(x), merge(small)(x))  # with gradients: layer by layer
