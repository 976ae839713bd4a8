"""Exported files compute what the model does, in another runtime; what can't be exported leaves nothing behind."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.errors import ConfigError, FileError, VerifyError
from secateur.frameworks.export import ExportReport, export
from secateur.tensors import tensors_in

FORMS = ["pt2", pytest.param("onnx", marks=pytest.mark.skipif(find_spec("onnxruntime") is None, reason="no onnx"))]


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    ).eval()


class Block(nn.Module):
    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads, self.head_dim = n_heads, width // n_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, length, 3, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * 0.25).masked_fill(~mask[:, None, None], -1e9).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, length, self.n_heads * self.head_dim))
        return x + self.down(nn.functional.gelu(self.up(self.norm2(x))))


class Encoder(nn.Module):
    """BERT in small: token and position embeddings, two blocks, a pooled output; it gives a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(50, 32), nn.Embedding(12, 32)
        self.blocks = nn.ModuleList(Block(32, 4) for _ in range(2))
        self.head = nn.Linear(32, 5)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Any]:
        x = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1], device=input_ids.device))
        hidden = []
        for block in self.blocks:
            x = block(x, attention_mask.bool())
            hidden.append(x.mean(-1))
        return {"logits": self.head(x[:, 0]), "means": tuple(hidden)}


def encoder() -> tuple[nn.Module, dict[str, Tensor]]:
    torch.manual_seed(0)
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, 7:] = 0
    return Encoder().eval(), {"input_ids": torch.randint(50, (2, 12)), "attention_mask": mask}


def pruned(model: nn.Module, inputs: Any) -> nn.Module:
    return secateur.apply(model, secateur.plan(model, inputs, secateur.Budget(params=0.5)))


@pytest.mark.parametrize("suffix", FORMS)
def test_pruned_cnn_computes_the_same_in_the_file(tmp_path: Path, suffix: str) -> None:
    x = torch.randn(2, 3, 8, 8)
    small = pruned(cnn(), x)
    report = export(small, tmp_path / f"small.{suffix}", x)
    assert report.max_difference < 1e-5
    assert report.size_bytes == (tmp_path / f"small.{suffix}").stat().st_size
    assert (report.inputs, report.outputs) == (("input",), ("output",))
    assert [p.name for p in tmp_path.iterdir()] == [f"small.{suffix}"]
    assert "largest relative difference" in str(report)


def test_onnx_runtime_agrees_on_other_values(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = encoder()
    small = pruned(model, inputs)
    report = export(small, tmp_path / "small.onnx", inputs)
    assert report.opset is not None
    assert report.outputs == ("logits", "means_0", "means_1")
    other = {"input_ids": torch.randint(50, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    session = onnxruntime.InferenceSession(str(tmp_path / "small.onnx"), providers=["CPUExecutionProvider"])
    logits, *means = session.run(None, {name: t.numpy() for name, t in other.items()})
    expected = small(**other)
    torch.testing.assert_close(torch.from_numpy(logits), expected["logits"], atol=1e-4, rtol=1e-4)
    for mine, theirs in zip(means, expected["means"], strict=True):
        torch.testing.assert_close(torch.from_numpy(mine), theirs, atol=1e-4, rtol=1e-4)


def test_a_loaded_program_needs_no_class(tmp_path: Path) -> None:
    model, inputs = encoder()
    small = pruned(model, inputs)
    export(small, tmp_path / "small.pt2", inputs)
    loaded = torch.export.load(tmp_path / "small.pt2").module()(**inputs)
    torch.testing.assert_close(loaded["logits"], small(**inputs)["logits"])


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = cnn().train()
    before = {key: t.clone() for key, t in model.state_dict().items()}
    export(model, tmp_path / "m.pt2", torch.randn(2, 3, 8, 8))
    assert all(m.training for m in model.modules())
    assert all(torch.equal(t, before[key]) for key, t in model.state_dict().items())


def test_an_existing_file_stays_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    path.write_text("mine")
    with pytest.raises(FileError, match="exists"):
        export(cnn(), path, torch.randn(2, 3, 8, 8))
    assert path.read_text() == "mine"
    report = export(cnn(), path, torch.randn(2, 3, 8, 8), overwrite=True)
    assert isinstance(report, ExportReport)
    assert path.read_bytes() != b"mine"


@pytest.mark.parametrize("suffix", FORMS)
@pytest.mark.parametrize("n", [1, 3])
def test_a_batch_of_any_size(tmp_path: Path, suffix: str, n: int) -> None:
    """Also from one example, which torch.export would take for a size that is always one."""
    x = torch.randn(n, 3, 8, 8)
    small, path = pruned(cnn(), x), tmp_path / f"small.{suffix}"
    report = export(small, path, x, dynamic_batch=True)
    assert sorted(report.batches) == ([1, 2, 3] if n == 1 else [1, 3, 4])
    assert report.max_difference < 1e-5
    assert "any batch, compared at" in str(report)
    other = torch.randn(7, 3, 8, 8)
    torch.testing.assert_close(run_file(path, {"input": other})[0], small(other), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("suffix", FORMS)
def test_a_batch_of_any_size_of_named_inputs(tmp_path: Path, suffix: str) -> None:
    model, inputs = encoder()
    path = tmp_path / f"m.{suffix}"
    assert export(model, path, inputs, dynamic_batch=True).inputs == ("input_ids", "attention_mask")
    other = {key: t[torch.tensor([1, 0, 1, 0, 1])] for key, t in inputs.items()}
    found, expected = run_file(path, other), tensors_in(model(**other))
    assert len(found) == len(expected) == 3
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)


def run_file(path: Path, inputs: dict[str, Tensor]) -> list[Tensor]:
    if path.suffix == ".pt2":
        positional = tuple(inputs.values()) if list(inputs) == ["input"] else ()
        return tensors_in(torch.export.load(path).module()(*positional, **({} if positional else inputs)))
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [torch.from_numpy(r) for r in session.run(None, {name: t.numpy() for name, t in inputs.items()})]


class OfOneSize(nn.Module):
    """`is_loud`: other batches are an error; else they come out as something of another shape."""

    def __init__(self, is_loud: bool) -> None:
        super().__init__()
        self.fc, self.is_loud = nn.Linear(3, 3), is_loud

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return y.view(2, 3) if self.is_loud else y.reshape(2, -1)


@pytest.mark.parametrize("suffix", FORMS)
def test_a_forward_of_one_batch_size_says_so(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"m.{suffix}"
    with pytest.raises(FileError, match=r"fails on a batch of 1.*Leave out dynamic_batch"):
        export(OfOneSize(is_loud=True), path, torch.ones(2, 3), dynamic_batch=True)
    with pytest.raises(FileError, match=r"fails on a batch of 1|for any batch"):
        export(OfOneSize(is_loud=False), path, torch.ones(2, 3), dynamic_batch=True)
    with pytest.raises(ConfigError, match="no axis for a batch"):
        export(OfOneSize(is_loud=True), path, torch.tensor(1.0), dynamic_batch=True)
    assert list(tmp_path.iterdir()) == []
    assert export(OfOneSize(is_loud=True), path, torch.ones(2, 3)).batches == ()


class Unruly(nn.Module):
    """Its shapes depend on values, which a graph can't hold; `bad` also gives other numbers each time."""

    def __init__(self, bad: bool = False) -> None:
        super().__init__()
        self.fc, self.bad = nn.Linear(3, 3), bad

    def forward(self, x: Tensor) -> Tensor:
        if self.bad:
            return self.fc(x) + torch.rand(3)
        return self.fc(x) if float(x.sum()) > 0 else x


@pytest.mark.parametrize("suffix", FORMS)
def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(FileError, match="can't do Unruly"):
        export(Unruly(), tmp_path / f"m.{suffix}", torch.ones(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_other_numbers_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_text("mine")
    with pytest.raises(VerifyError, match="differs from the model"):
        export(Unruly(bad=True), tmp_path / "m.pt2", torch.ones(1, 3), overwrite=True)
    assert (tmp_path / "m.pt2").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_clear_errors_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(1, 3)
    with pytest.raises(ConfigError, match=r"Name the file model\.onnx or model\.pt2"):
        export(nn.Linear(3, 3), tmp_path / "m.pt", x)
    with pytest.raises(FileError, match="is no folder"):
        export(nn.Linear(3, 3), tmp_path / "none" / "m.pt2", x)
    with pytest.raises(FileError, match="meta device"):
        export(nn.Linear(3, 3, device="meta"), tmp_path / "m.pt2", x)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"pip install 'secateur\[onnx\]'"):
        export(nn.Linear(3, 3), tmp_path / "m.onnx", x)
