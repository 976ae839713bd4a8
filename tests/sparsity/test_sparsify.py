"""The step as a whole: exact sparsity by every score and scope, masks that stay and only grow, streaming, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.coding import codable, codings_of
from secateur.edits import Edits, Prune
from secateur.errors import ConfigError, DataError, GroupError
from secateur.layers import Layer
from secateur.sparsity import SCORES
from secateur.steps import STEPS, Done, Sparsify, Step
from secateur.steps.sparsify import sparsify

from .published import sparsegpt, wanda

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (12,), generator=torch.Generator().manual_seed(1))
BATCHES = list(zip(X.split(4), Y.split(4), strict=True))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 4)).eval()


def zeros(done: Done) -> dict[str, float]:
    return {key: float((w == 0).float().mean()) for key, w in codable(done.model)[0].items()}


@pytest.mark.parametrize("scope", ["layer", "output", "global", "lamp", "erk"])
@pytest.mark.parametrize("score", sorted(SCORES))
def test_the_sparsity_is_exact(score: str, scope: str) -> None:
    model = net()
    done = sparsify(model, BATCHES, Sparsify(sparsity=0.6, score=score, scope=scope))
    sizes = {key: w.numel() for key, w in codable(model)[0].items()}
    n_zeros = {key: round(part * sizes[key]) for key, part in zeros(done).items()}
    if scope in ("layer", "output"):
        assert n_zeros == {key: round(0.6 * n) for key, n in sizes.items()}
    assert sum(n_zeros.values()) == pytest.approx(0.6 * sum(sizes.values()), abs=1 if scope != "layer" else 2)
    assert {key: fact["zeros"] for key, fact in done.facts["layers"].items()} == n_zeros
    assert not codings_of(model)
    assert list(codings_of(done.model)) == list(sizes)


@pytest.mark.parametrize("score", sorted(SCORES))
def test_of_each_m_inputs_n_stay(score: str) -> None:
    done = sparsify(net(), BATCHES, Sparsify(pattern="2:4", score=score))
    assert ("0.weight", "its 3 inputs are no multiple of 4") in done.skipped
    for key in ("3.weight", "7.weight"):
        module = done.model.get_submodule(key[0])
        matrix = Layer(key, module).matrix(module.weight.detach())
        assert bool(((matrix.reshape(-1, 4) != 0).sum(1) == 2).all())


@pytest.mark.parametrize("score", sorted(SCORES))
def test_masks_only_grow(score: str) -> None:
    first = sparsify(net(), BATCHES, Sparsify(sparsity=0.3, score="magnitude"))
    again = sparsify(first.model, BATCHES, Sparsify(sparsity=0.6, score=score))
    assert again.edit is None  # the masks are there already
    for key, (mask,) in codings_of(again.model).items():
        before = codings_of(first.model)[key][0].mask
        assert bool((mask.mask <= before).all())
        assert int((~mask.mask).sum()) == round(0.6 * mask.mask.numel())
    less = sparsify(again.model, BATCHES, Sparsify(sparsity=0.1, score=score))
    assert zeros(less) == zeros(again)


def test_layers_follow_each_other_as_published() -> None:
    """One pass for a network without blocks: every layer by what it reads in the dense network."""
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(3))
    model = mlp()
    inputs, read = x, {}
    for i, module in enumerate(model):
        read[f"{i}.weight"] = inputs
        inputs = module(inputs).detach()
    for name, slow in (
        ("wanda", lambda w, x: wanda(w, x, 0.5)),
        ("sparsegpt", lambda w, x: sparsegpt(w, x, 0.5, block=128, damping=0.01)),
    ):
        done = sparsify(model, x.split(8), Sparsify(score=name, stream=False))
        for key, weight in codable(model)[0].items():
            torch.testing.assert_close(codable(done.model)[0][key], slow(weight, read[key]), rtol=1e-4, atol=1e-5)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


def test_streaming_lets_later_blocks_see_sparse_earlier_ones() -> None:
    x, model = torch.randn(40, 6, generator=torch.Generator().manual_seed(3)), Blocks()
    done = sparsify(model, x.split(8), Sparsify(score="wanda"))
    assert done.notes[1] == "calibrated block by block: 3 blocks, from 'blocks.0' to 'blocks.2'"
    expected = Blocks()
    expected.stem.weight.data = wanda(model.stem.weight.detach(), x, 0.5)
    h = expected.stem(x).detach()
    for block in expected.blocks:  # written out: sparsify a block by what it reads, then run it
        block[0].weight.data = wanda(block[0].weight.detach(), h, 0.5)
        h = block(h).detach()
    torch.testing.assert_close(done.model(x), expected(x))


def test_the_edit_replays() -> None:
    model = net()
    done = sparsify(model, BATCHES, Sparsify(score="sparsegpt"))
    assert done.edit is not None
    edits = Edits.from_json(Edits().then(done.edit).to_json())
    again = edits.replay(net())
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(X), done.model(X))


def test_sparse_weights_are_pruned_trained_and_made_sparser() -> None:
    model = net()
    done = sparsify(model, BATCHES, Sparsify(score="wanda"))
    plan = secateur.plan(done.model, X[:1], secateur.Budget(width=0.5))
    small = secateur.apply(done.model, plan)
    assert done.edit is not None
    more = sparsify(small, BATCHES, Sparsify(sparsity=0.8, score="sparsegpt"))
    for key, (mask,) in codings_of(more.model).items():
        assert int((~mask.mask).sum()) >= round(0.8 * mask.mask.numel())
        assert bool((mask.mask <= codings_of(small)[key][0].mask).all())
    again = Edits().then(done.edit).then(Prune(plan)).replay(net())
    again.load_state_dict(more.model.state_dict())
    assert torch.equal(again(X), more.model(X))


def test_what_is_left_alone_is_said() -> None:
    class Idle(nn.ModuleDict):
        def forward(self, x: Tensor) -> Tensor:
            return self["fc"](x)

    model = Idle({"fc": nn.Linear(4, 4), "table": nn.Embedding(3, 4), "idle": nn.Linear(4, 4)})
    done = sparsify(model, [torch.ones(2, 4)], Sparsify(score="wanda"))
    assert dict(done.skipped) == {
        "table.weight": "Embedding is no linear layer or convolution",
        "idle.weight": "the forward doesn't call its layer",
    }
    assert dict(sparsify(model, step=Sparsify(ignore=("fc",))).skipped)["fc.weight"] == "ignored"


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"sparsity": 1.0}, "sparsity=1.0 is outside"),
        ({"sparsity": 0.6, "pattern": "2:4"}, "has a sparsity of 0.5, not 0.6"),
        ({"pattern": "2:4", "scope": "global"}, "gives every layer the same sparsity"),
    ],
)
def test_settings_that_contradict_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Sparsify(**settings)


def test_what_a_score_lacks_is_said() -> None:
    with pytest.raises(DataError, match="'wanda' is measured on data"):
        sparsify(mlp(), step=Sparsify(score="wanda"))
    with pytest.raises(ConfigError, match="no labels"):
        sparsify(net(), [X], Sparsify(score="taylor"))
    with pytest.raises(ConfigError, match="no blocks that run one after another"):
        sparsify(net(), [X], Sparsify(score="wanda", stream=True))
    broken = mlp()
    broken[2].weight.data[0, 0] = float("nan")
    with pytest.raises(GroupError, match=r"'2\.weight' holds NaN"):
        sparsify(broken)
    with pytest.raises(GroupError, match=r"What '0\.weight' reads holds NaN"):
        sparsify(mlp(), [torch.full((2, 8), float("nan"))], Sparsify(score="wanda"))


def test_the_step_keeps_the_contract() -> None:
    assert STEPS["sparsify"] is Sparsify
    assert isinstance(Sparsify(), Step)
    assert Sparsify(score="taylor").needs_labels
    assert not Sparsify(score="wanda").needs_labels


def test_weights_in_half_precision_keep_their_type() -> None:
    model = mlp().bfloat16()
    for score in ("wanda", "sparsegpt"):
        done = sparsify(model, [torch.randn(40, 8).bfloat16()], Sparsify(score=score))
        assert all(w.dtype == torch.bfloat16 for w in codable(done.model)[0].values())
        assert all(part == 0.5 for part in zeros(done).values())
