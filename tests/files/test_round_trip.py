"""Law: save, load, same outputs; and what is stored is each tensor once, in its own dtype."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import secateur
from secateur.edits import Edits
from secateur.errors import FileError
from secateur.files import open_folder
from secateur.tensors import as_call, named_tensors, tensors_in


def run(model, inputs):
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        return tensors_in(model.eval()(*args, **kwargs))


def test_loading_gives_the_same_function(case, tmp_path):
    small, plan = case.pruned()
    folder = secateur.save(small, tmp_path / "small", plan=plan)
    again = secateur.load(folder, case.build)
    assert not again.training
    for a, b in zip(run(small, case.inputs), run(again, case.inputs), strict=True):
        assert torch.equal(a, b)
    mine, theirs = named_tensors(small), named_tensors(again)
    assert mine.keys() == theirs.keys()
    for key in mine:
        assert torch.equal(mine[key], theirs[key])
        assert mine[key].dtype == theirs[key].dtype


def test_tied_tensors_are_stored_once_and_stay_tied(tied, tmp_path):
    case = tied
    small, plan = case.pruned()
    folder = secateur.save(small, tmp_path / "small", plan=plan)
    assert json.loads((folder / "secateur.json").read_text())["tied"] == {"head.weight": "embed.weight"}
    assert "head.weight" not in load_file(folder / "model.safetensors")
    again = secateur.load(folder, case.build)
    assert again.head.weight is again.embed.weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_converted_model_keeps_its_dtype(case, dtype, tmp_path):
    small, plan = case.pruned()
    small.to(dtype)
    if case.name == "plain attribute":
        small.scale = small.scale.to(dtype)
    again = secateur.load(secateur.save(small, tmp_path / "small", plan=plan), case.build)
    assert {p.dtype for p in again.parameters()} == {dtype}
    for key, tensor in named_tensors(small).items():
        assert named_tensors(again)[key].dtype == tensor.dtype
        assert torch.equal(named_tensors(again)[key], tensor)


def test_a_source_needs_no_build_function(cnn, tmp_path):
    small, plan = cnn.pruned()
    folder = secateur.save(
        small, tmp_path / "a" / "b", plan=plan, source=cnn.source, recipe="a = 1\n", report={"accuracy": 0.5}
    )
    saved = open_folder(folder)
    assert torch.equal(saved.model(cnn.inputs), small.eval()(cnn.inputs))
    assert (saved.edits, saved.recipe, saved.report) == (Edits.of(plan), "a = 1\n", {"accuracy": 0.5})


def test_a_model_built_on_the_meta_device_is_filled(cnn, tmp_path):
    small, plan = cnn.pruned()
    folder = secateur.save(small, tmp_path / "small", plan=plan)

    def build():
        with torch.device("meta"):
            return cnn.build()

    assert torch.equal(secateur.load(folder, build)(cnn.inputs), small.eval()(cnn.inputs))


def test_an_empty_plan_and_a_composed_one_are_saved_too(cnn, tmp_path):
    dense = cnn.build()
    whole = secateur.plan(dense, cnn.inputs, secateur.Budget(width=1.0))
    assert torch.equal(
        secateur.load(secateur.save(dense, tmp_path / "0", plan=whole), cnn.build)(cnn.inputs), dense.eval()(cnn.inputs)
    )
    small, first = cnn.pruned()
    second = secateur.plan(small, cnn.inputs, secateur.Budget(width=0.5))
    smaller, both = secateur.apply(small, second), secateur.compose(first, second)
    folder = secateur.save(smaller, tmp_path / "2", plan=both, source=cnn.source)
    assert torch.equal(secateur.load(folder)(cnn.inputs), smaller.eval()(cnn.inputs))


def test_saving_changes_nothing(cnn, tmp_path):
    small, plan = cnn.pruned()
    small.train()
    before = {key: t.clone() for key, t in small.state_dict().items()}
    state = torch.random.get_rng_state()
    folder = secateur.save(small, tmp_path / "small", plan=plan, source=cnn.source)
    secateur.load(folder)
    assert small.training
    assert all(torch.equal(before[key], t) for key, t in small.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_same_model_gives_the_same_bytes(cnn, tmp_path):
    small, plan = cnn.pruned()
    a, b = (secateur.save(small, tmp_path / name, plan=plan, source=cnn.source) for name in "ab")
    assert {p.name: p.read_bytes() for p in a.iterdir()} == {p.name: p.read_bytes() for p in b.iterdir()}


def test_what_does_not_belong_together_is_not_saved(cnn, tmp_path):
    small, plan = cnn.pruned()
    with pytest.raises(FileError, match=r"is not what this plan makes: 'stem\.weight' is"):
        secateur.save(cnn.build(), tmp_path / "x", plan=plan)
    with pytest.raises(FileError, match=r"does not build the architecture that was pruned.*stem.weight"):
        secateur.save(small, tmp_path / "x", plan=plan, source="builtin:digits_cnn?width=16")
    with pytest.raises(FileError, match="meta device"):
        secateur.save(small.to("meta"), tmp_path / "x", plan=plan)
    assert not (tmp_path / "x").exists()


def test_a_forward_that_fails_on_the_inputs_is_named(tmp_path):
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    plan = secateur.plan(model, torch.ones(1, 3), secateur.Budget(width=0.5))
    small = secateur.apply(model, plan)
    with pytest.raises(FileError, match="fails on the plan's example inputs"):
        secateur.save(small, tmp_path / "x", plan=plan, inputs=torch.ones(1, 4))
