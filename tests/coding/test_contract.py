"""The laws of `Coding`, for every registered one; a coding without a case fails here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import secateur.quantize as q
from secateur.coding import CODINGS, Code, Coding, Mask, attach_, codings_of
from secateur.edits import Edits
from secateur.errors import ConfigError, FileError
from secateur.sharing.codebook import Codebook


def codebook(weight: Tensor) -> Codebook:
    """The nearest of five even steps."""
    flat = weight.detach().flatten()
    values = torch.linspace(-1, 1, 5).to(weight.dtype) * flat.abs().max()
    codes = (flat[:, None].double() - values.double()).abs().argmin(1)
    return Codebook(values[:, None], codes, tuple(weight.shape))


GRANULARITIES = (q.PerTensor(), q.PerChannel(), q.PerGroup(6))
CASES: dict[str, list[Callable[[Tensor], Coding]]] = {
    "mask": [lambda w: Mask(w > 0)],
    "symmetric": [lambda w, g=g, b=b: q.Symmetric.fit(w, g, b) for g in GRANULARITIES for b in (2, 4, 8)],
    "affine": [lambda w, g=g, b=b: q.Affine.fit(w, g, b) for g in GRANULARITIES for b in (2, 5, 7)],
    "binary": [lambda w, g=g: q.Binary.fit(w, g) for g in GRANULARITIES],
    "ternary": [lambda w, g=g: q.Ternary.fit(w, g) for g in GRANULARITIES],
    "codebook": [lambda w: codebook(w)],
}
MAKERS = [pytest.param(make, id=f"{kind}-{i}") for kind, all_ in CASES.items() for i, make in enumerate(all_)]
SHAPES = [(4, 6), (5, 3, 2, 2), (1, 6), (60, 12)]


def weights(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Gaussian; with rows of zeros; all alike; huge and tiny; one-sided."""
    normal = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    part = normal.clone()
    part[0] = 0
    found = [normal, part, torch.full(shape, -0.3), normal * 100, normal * 1e-2, normal.abs()]
    return [w.to(dtype) for w in found]


def test_every_coding_has_a_case() -> None:
    assert set(CASES) == set(CODINGS)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_coded_twice_is_coded_once_and_bytes_bring_it_back(
    make: Callable[[Tensor], Coding], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    for weight in weights(shape, dtype):
        coding = make(weight)
        coded = coding(weight).detach()
        assert coded.dtype == dtype
        assert coded.shape == weight.shape
        assert torch.equal(coding(coded), coded)
        packed = coding.pack(coded)
        assert all(t.is_contiguous() for t in packed.values())
        again = CODINGS[coding.kind].blank(torch.empty(shape, dtype=dtype), coding.settings())
        unpacked = again.unpack(packed, shape)
        assert unpacked.dtype == dtype
        assert torch.equal(unpacked, coded)
        assert torch.equal(again(unpacked), coded)
        assert {name: t.tolist() for name, t in again.pack(unpacked).items()} == {
            name: t.tolist() for name, t in packed.items()
        }


@pytest.mark.parametrize("make", MAKERS)
def test_what_was_trained_is_stored(make: Callable[[Tensor], Coding]) -> None:
    weight = weights((8, 12))[0]
    coding = make(weight)
    before = coding(weight).detach()
    free = nn.Parameter(weight.clone())
    learning = [free, *coding.parameters()]
    optimizer = torch.optim.SGD(learning, lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (coding(free) - 1).square().sum().backward()
        assert all(bool(torch.isfinite(p.grad).all()) for p in learning if p.grad is not None)
        optimizer.step()
    coded = coding(free).detach()
    assert not torch.equal(coded, before)
    again = CODINGS[coding.kind].blank(weight, coding.settings())
    assert torch.equal(again.unpack(coding.pack(coded), weight.shape), coded)
    assert torch.equal(again(coded), coded)


@pytest.mark.parametrize("make", MAKERS)
def test_edits_replay_a_coding_of_the_same_form(make: Callable[[Tensor], Coding]) -> None:
    net = nn.Sequential(nn.Linear(12, 4))
    coding = make(net[0].weight)
    edit = Code.of({"0.weight": coding})
    assert Edits.from_json(Edits((edit,)).to_json()) == Edits((edit,))
    attach_(net, "0.weight", coding)
    again = edit.replay(nn.Sequential(nn.Linear(12, 4)))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again[0].weight, net[0].weight)
    assert codings_of(again)["0.weight"][0].settings() == coding.settings()


@pytest.mark.parametrize("make", MAKERS)
def test_damaged_bytes_are_refused(make: Callable[[Tensor], Coding]) -> None:
    weight = weights((8, 12))[0]
    coding = make(weight)
    packed = coding.pack(coding(weight).detach())
    for wrong in ({}, {**packed, "more": torch.ones(1)}, *({**packed, name: t[:-1]} for name, t in packed.items())):
        with pytest.raises(FileError):
            CODINGS[coding.kind].blank(weight, coding.settings()).unpack(wrong, weight.shape)
    for name, value in packed.items():
        if value.is_floating_point() and name != "values":  # a mask keeps any values
            for bad in (torch.nan, torch.inf, -1.0):
                with pytest.raises(FileError):
                    coding.unpack({**packed, name: torch.full_like(value, bad)}, weight.shape)


@pytest.mark.parametrize("make", MAKERS)
def test_unknown_settings_are_refused(make: Callable[[Tensor], Coding]) -> None:
    weight = weights((8, 12))[0]
    coding = make(weight)
    for settings in ({**coding.settings(), "more": 1}, {key: [] for key in coding.settings()} | {"a": 1}):
        with pytest.raises(ConfigError):
            CODINGS[coding.kind].blank(weight, settings)
