"""A damaged, foreign or hostile folder: a FileError that says what, where and what to do, and no code runs."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch

import secateur
from secateur.edits import Edits
from secateur.errors import FileError
from secateur.files import loading
from secateur.files import manifest as manifest_file
from secateur.files.loading import Saved, open_folder
from secateur.models import digits_cnn
from secateur.sources import build_model
from secateur.steps.quantize import Quantize, quantize

IMAGE = torch.zeros(1, 1, 8, 8)


@pytest.fixture
def folder(cnn, tmp_path) -> Path:
    small, plan = cnn.pruned()
    return secateur.save(
        small, tmp_path / "small", plan=plan, source=cnn.source, recipe="x = 1\n", report={"accuracy": 1}
    )


def reseal(folder: Path, **changes: object) -> None:
    """Do what a forger does: change fields and files, and write fitting checksums."""
    path = folder / "secateur.json"
    data = json.loads(path.read_text())
    data["files"] = {
        name: vars(manifest_file.entry_of(folder / name)) if (folder / name).is_file() else entry
        for name, entry in data["files"].items()
    }
    data |= changes
    data.pop("checksum")
    path.write_text(json.dumps(data | {"checksum": manifest_file._seal(data)}))


def contents(saved: Saved) -> tuple[object, ...]:
    state = {key: t.tolist() for key, t in saved.model.state_dict().items()}
    return state, saved.edits, saved.recipe, saved.report, saved.manifest


def test_any_flipped_bit_is_found_or_harmless(folder):
    expected = contents(open_folder(folder))
    draw = random.Random(0)
    for path in sorted(folder.iterdir()):
        good = path.read_bytes()
        places = [draw.randrange(len(good)) for _ in range(12)] + [0, len(good) - 1]
        for place in places:
            path.write_bytes(good[:place] + bytes([good[place] ^ (1 << draw.randrange(8))]) + good[place + 1 :])
            with contextlib.suppress(FileError):
                assert contents(open_folder(folder)) == expected
        path.write_bytes(good)


def test_flips_in_the_manifest_all_over(folder):
    """The manifest guards the rest, so many of its bytes are tried; reading it alone is quick."""
    path = folder / "secateur.json"
    good, expected = path.read_bytes(), manifest_file.read_manifest(folder)
    for place in range(0, len(good), 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with contextlib.suppress(FileError):
            assert manifest_file.read_manifest(folder) == expected


@pytest.mark.parametrize("name", ["secateur.json", "plan.json", "model.safetensors", "recipe.toml", "report.json"])
def test_truncated_missing_and_linked_files(folder, name, tmp_path):
    path = folder / name
    good = path.read_bytes()
    for part in (b"", good[: len(good) // 2], good + b" " * 9):
        path.write_bytes(part)
        if part[:-9] == good and name == "secateur.json":
            continue  # blanks after JSON mean nothing
        with pytest.raises(FileError, match=name):
            open_folder(folder)
    path.unlink()
    with pytest.raises(FileError, match=name):
        open_folder(folder)
    (tmp_path / "elsewhere").write_bytes(good)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileError, match="link"):
        open_folder(folder)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(FileError, match="special"):
        open_folder(folder)


def test_foreign_places(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        secateur.load(tmp_path / "nowhere")
    with pytest.raises(FileError, match=r"holds no secateur\.json"):
        secateur.load(tmp_path)
    (tmp_path / "secateur.json").write_text('{"kind": "other"}')
    with pytest.raises(FileError, match="not a model that Secateur saved"):
        secateur.load(tmp_path)
    (tmp_path / "secateur.json").write_text("[" * 100_000)
    with pytest.raises(FileError, match="can't be read"):
        secateur.load(tmp_path)
    with pytest.raises(FileError, match="is a file, not a folder"):
        secateur.load(tmp_path / "secateur.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has schema 2; this Secateur reads schema 1"),
        ({"colour": "red"}, "unknown key 'colour'"),
        ({"source": 3}, "source is 3, but must be text"),
        ({"dtype": "float16"}, "holds float32, but says float16"),
        ({"tied": {"a": "b"}}, "ties 'a' to a tensor"),
        ({"constants": {"a": "float32"}}, "tensor attribute 'a' differs"),
        ({"source": None}, "saved without a source"),
        ({"source": "timm:hf-hub:someone/model"}, "is no name|no model"),
        ({"source": "timm:resnet18?checkpoint_path='x.pth'"}, "would read or download"),
        ({"source": "torchvision:resnet18?weights='DEFAULT'"}, "would read or download"),
        ({"source": "builtin:digits_cnn?width=100000"}, "has .* parameters but its file"),
        ({"source": "builtin:digits_cnn?width=9"}, "does not fit the model"),
        ({"source": "exec:ls"}, "no model source"),
    ],
)
def test_forged_manifests(folder, changes, message):
    reseal(folder, **changes)
    with pytest.raises(FileError, match=message):
        open_folder(folder)


def test_a_missing_field_and_a_foreign_file_name(folder):
    path = folder / "secateur.json"
    data = json.loads(path.read_text())
    entry = data["files"]["plan.json"]
    reseal(folder, files={**data["files"], "../../etc/passwd": entry})
    with pytest.raises(FileError, match=r"lists '\.\./\.\./etc/passwd', which is no file of a saved model"):
        open_folder(folder)
    del data["tied"], data["checksum"]
    path.write_text(json.dumps(data | {"checksum": manifest_file._seal(data)}))
    with pytest.raises(FileError, match="lacks 'tied'"):
        open_folder(folder)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ([10**6, 10**6], "float32", "more than"),
        ([-1], "float32", "not describe"),
        ([1], "save", "not describe"),
    ],
)
def test_hostile_inputs(folder, shape, dtype, message):
    stored = json.loads((folder / "secateur.json").read_text())["fingerprint"]
    reseal(folder, fingerprint={**stored, "inputs": {"shape": shape, "dtype": dtype}})
    with pytest.raises(FileError, match=message):
        open_folder(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p["groups"][0].update(keep=[[0, 10**15]]), "keeps more units than"),
        (lambda p: p["groups"][0].update(keep="all"), "is not a plan"),
        (lambda p: p["attributes"][0].update(path="__class__.dump_patches"), "no number of a model"),
        (
            lambda p: p["attributes"].append({"fqn": "no.where", "path": "x", "old": 1, "new": 2}),
            "does not fit|no.where",
        ),
        (lambda p: p.update(extra=1), "is not a plan"),
        (lambda p: p["groups"].__setitem__(0, 1), "is not a plan"),
    ],
)
def test_hostile_plans(folder, change, message):
    path = folder / "plan.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    reseal(folder)
    with pytest.raises(FileError, match=message):
        open_folder(folder)


@pytest.fixture
def built_on(monkeypatch) -> list[str]:
    """Where the loader builds architectures, in order."""
    devices: list[str] = []

    def watched(source):
        devices.append(torch.empty(0).device.type)
        return build_model(source)

    monkeypatch.setattr(loading, "build_model", watched)
    return devices


def test_a_hostile_source_takes_no_memory(folder, built_on):
    reseal(folder, source="builtin:digits_cnn?width=100000")
    with pytest.raises(FileError, match=r"has .* parameters but its file"):
        secateur.load(folder)
    assert set(built_on) == {"meta"}


def test_a_plan_does_not_make_a_hostile_source_harmless(tmp_path, built_on):
    """Nothing is pruned, and the codes claim more numbers than any form of storage gives for their bytes."""
    model = digits_cnn(width=4).eval()
    folder = secateur.save(model, tmp_path / "m", plan=Edits(), inputs=IMAGE, source="builtin:digits_cnn?width=4")
    reseal(folder, source="builtin:digits_cnn?width=20000")
    with pytest.raises(FileError, match=r"and its plan have .* numbers, its file .* bytes. Don't load it; or pass"):
        secateur.load(folder)
    assert set(built_on) == {"meta"}


@pytest.mark.slow
def test_few_bytes_may_stand_for_many_numbers(tmp_path, built_on, monkeypatch):
    """However large the dense model and however well it is coded, its own shapes are what the file must fill."""
    monkeypatch.setattr(loading, "MAX_DENSE", 0)
    monkeypatch.setattr(loading, "MAX_SHRINK", 0)
    model = digits_cnn(width=64).eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    done = quantize(model, step=Quantize(bits=2, granularity="per_tensor"))
    source, edits = "builtin:digits_cnn?width=64", Edits().then(done.edit)
    folder = secateur.save(done.model, tmp_path / "m", plan=edits, inputs=IMAGE, source=source, is_compact=True)
    assert (folder / "model.safetensors.xz").stat().st_size < sum(p.numel() for p in model.parameters()) / 100
    again = secateur.load(folder)
    assert built_on == ["meta"]
    assert all(map(torch.equal, again.state_dict().values(), done.model.state_dict().values()))


def test_a_stored_python_source_runs_only_when_trusted(folder, tmp_path, monkeypatch, cnn):
    marker = tmp_path / "ran"
    (tmp_path / "evil_model.py").write_text(
        f"import pathlib\npathlib.Path({str(marker)!r}).touch()\n"
        "from secateur.models import digits_cnn\ndef build(width):\n    return digits_cnn(width=width)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    reseal(folder, source="python:evil_model:build?width=8")
    with pytest.raises(FileError, match="would run that code"):
        secateur.load(folder)
    assert not marker.exists()
    secateur.load(folder, cnn.build)
    assert not marker.exists()
    secateur.load(folder, trust_source=True)
    assert marker.exists()


def test_another_model_of_the_same_shapes_is_noticed(tmp_path):
    def build(activation=torch.nn.ReLU):
        return torch.nn.Sequential(torch.nn.Linear(3, 8), activation(), torch.nn.Linear(8, 2))

    model = build()
    plan = secateur.plan(model, torch.ones(1, 3), secateur.Budget(width=0.5))
    folder = secateur.save(secateur.apply(model, plan), tmp_path / "small", plan=plan)
    with pytest.raises(FileError, match="does not compute what it did when it was saved"):
        secateur.load(folder, lambda: build(torch.nn.Tanh))
    with pytest.raises(FileError, match=r"build\(\) failed .* ValueError: no"):
        secateur.load(folder, lambda: (_ for _ in ()).throw(ValueError("no")))


def test_a_copied_folder_loads(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / "notes.txt").write_text("mine")
    assert open_folder(tmp_path / "copy").manifest == open_folder(folder).manifest
