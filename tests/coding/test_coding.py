"""Codings compose with pruning, training and each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import secateur
from secateur.coding import Code, Mask, attach_, bake, codable, codings_of
from secateur.coding.bits import pack_bits, unpack_bits
from secateur.edits import Edits, Prune
from secateur.errors import ConfigError, FileError, PlanError
from secateur.measure import size_bytes

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def masked(model: nn.Module) -> dict[str, Mask]:
    weights, _ = codable(model)
    masks = {key: Mask(w.abs() > w.abs().median()) for key, w in weights.items()}
    for key, mask in masks.items():
        attach_(model, key, mask)
    return masks


@pytest.mark.parametrize("bits", range(1, 17))
def test_codes_of_every_width_come_back(bits: int) -> None:
    generator = torch.Generator().manual_seed(bits)
    for n in (0, 1, 7, 8, 9, 100):
        codes = torch.randint(0, 2**bits, (n,), generator=generator)
        packed = pack_bits(codes, bits)
        assert len(packed) == -(-n * bits // 8)
        text = "".join(f"{c:0{bits}b}" for c in codes.tolist())  # slow and obvious: the bits one after another
        assert packed.tolist() == [int(text[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(text), 8)]
        torch.testing.assert_close(unpack_bits(packed, bits, n), codes)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="Codes from 0 to 4 do not fit into 2 bits"):
        pack_bits(torch.tensor([0, 4]), 2)
    with pytest.raises(FileError, match="3 codes of 4 bits are 2 bytes"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 4, 3)


def test_a_mask_comes_back_from_its_bytes() -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    mask = Mask(weight > 0)
    packed = mask.pack(mask(weight))
    again = Mask.blank(weight, mask.settings())
    assert torch.equal(again.unpack(packed, weight.shape), mask(weight))
    assert torch.equal(again.mask, mask.mask)
    with pytest.raises(FileError, match="keeps"):
        again.unpack({**packed, "values": packed["values"][1:]}, weight.shape)


def test_pruning_slices_masks_along() -> None:
    model = net()
    masks = masked(model)
    plan = secateur.plan(model, X, secateur.Budget(width=0.5))
    small = secateur.apply(model, plan)  # proven by the numeric law
    kept = plan.keep("3.parametrizations.weight.original")
    expected = masks["3.weight"].mask.index_select(0, kept[0]).index_select(1, kept[1])
    assert torch.equal(codings_of(small)["3.weight"][0].mask, expected)
    assert bool((small[3].weight[~expected] == 0).all())


def test_training_keeps_what_is_masked_at_zero() -> None:
    model = net()
    masks = masked(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    for key, mask in masks.items():
        weight = model.get_submodule(key.rpartition(".")[0]).weight
        assert bool((weight[~mask.mask] == 0).all())
        assert bool((weight[mask.mask] != 0).all())


def test_baked_weights_are_plain_and_the_same() -> None:
    model = net()
    masked(model)
    plain = bake(model)
    assert torch.equal(plain(X), model(X))
    assert plain.state_dict().keys() == net().state_dict().keys()
    assert codings_of(model)


def test_what_cannot_be_coded_is_said() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(2, 2)
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.two.weight = self.one.weight
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))

        def forward(self, x: Tensor) -> Tensor:
            return x

    model = Odd()
    weights, skipped = codable(model)
    assert weights == {}
    assert {key: reason.split()[0] for key, reason in skipped} == {
        "lstm.weight_ih_l0": "recurrent",
        "lstm.weight_hh_l0": "recurrent",
        "one.weight": "tied",
        "two.weight": "tied",
        "normed.weight": "another",
    }
    with pytest.raises(PlanError, match=r"no weight 'three\.weight'"):
        attach_(model, "three.weight", Mask(torch.ones(2, 2)))


def test_edits_are_json_and_replay_in_order() -> None:
    dense = net()
    first = secateur.plan(dense, X, secateur.Budget(width=0.5))
    small = secateur.apply(dense, first)
    masks = masked(small)
    second = secateur.plan(small, X, secateur.Budget(width=0.5))
    smaller = secateur.apply(small, second)
    edits = Edits().then(Prune(first)).then(Code.of(masks)).then(Prune(second))
    assert Edits.from_json(edits.to_json()) == edits
    again = edits.replay(net())
    again.load_state_dict(smaller.state_dict())
    assert torch.equal(again(X), smaller(X))
    assert not any(parametrize.is_parametrized(m) for m in dense.modules())


def test_two_plans_in_a_row_are_one() -> None:
    dense = net()
    first = secateur.plan(dense, X, secateur.Budget(width=0.5))
    second = secateur.plan(secateur.apply(dense, first), X, secateur.Budget(width=0.5))
    edits = Edits().then(Prune(first)).then(Prune(second))
    assert edits.steps == (Prune(secateur.compose(first, second)),)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "secateur.edits"}', '{"a": NaN}'])
def test_what_is_no_list_of_edits_is_refused(text: str) -> None:
    with pytest.raises(PlanError, match="not a list of edits"):
        Edits.from_json(text)


def test_masks_are_saved_as_few_bytes_and_come_back(tmp_path: Path) -> None:
    dense = net()
    plan = secateur.plan(dense, X, secateur.Budget(width=0.5))
    small = secateur.apply(dense, plan)
    masks = masked(small)
    edits = Edits.of(plan).then(Code.of(masks))
    folder = secateur.save(small, tmp_path / "sparse", plan=edits)
    again = secateur.load(folder, net)
    assert torch.equal(again(X), small(X))
    assert torch.equal(codings_of(again)["3.weight"][0].mask, masks["3.weight"].mask)
    plain = secateur.save(bake(small), tmp_path / "plain", plan=plan)
    sizes = [(f / "model.safetensors").stat().st_size for f in (folder, plain)]
    assert sizes == [size_bytes(small), size_bytes(bake(small))]
    n_weights = sum(w.numel() for w in codable(small)[0].values())
    n_removed = sum(int((~mask.mask).sum()) for mask in masks.values())
    saved, header = 4 * n_removed - -(-n_weights // 8), 400  # the bitmasks cost a bit a weight
    assert abs((sizes[1] - sizes[0]) - saved) < header


def test_a_model_is_not_saved_with_edits_that_are_not_its_own(tmp_path: Path) -> None:
    dense = net()
    plan = secateur.plan(dense, X, secateur.Budget(width=0.5))
    small = secateur.apply(dense, plan)
    edits = Edits.of(plan).then(Code.of(masked(small)))
    with pytest.raises(FileError, match="is mask in Sequential, but not"):
        secateur.save(small, tmp_path / "a", plan=plan)
    with pytest.raises(FileError, match="not coded in Sequential, but mask in the edits"):
        secateur.save(bake(small), tmp_path / "b", plan=edits)
    assert not any(tmp_path.iterdir())
