"""Back ends that compute in few bits: they run, they are near the float model, and what can't run says so."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from secateur.errors import ConfigError, DataError
from secateur.quantize.backends import Realised, Unavailable, export_int8, int4_weights, int8_dynamic, realise
from secateur.steps.quantize import quantize

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 32)).eval()


def test_onnx_int8_is_small_and_near() -> None:
    (found,) = realise(net(), X, [X, X + 0.1], backends=["onnx int8"], repeats=3, warmup=1)
    assert isinstance(found, Realised), found
    assert found.max_difference < 0.1
    assert found.small_bytes < 0.5 * found.float_bytes
    assert found.float_ms > 0 < found.small_ms
    assert "ONNX Runtime" in str(found)


def test_a_coded_model_is_baked_first() -> None:
    model = quantize(net()).model
    before = model(X).detach()
    (found,) = realise(model, X, backends=["onnx int8"], repeats=1, warmup=0)
    assert isinstance(found, Realised), found
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "kl"])
def test_the_int8_file_is_written_and_int8(calibration: str, tmp_path: Path) -> None:
    import onnx

    report = export_int8(net(), tmp_path / "small.onnx", X, [X], calibration=calibration)
    assert report.max_difference < 1e-4  # of the float model that it was made from
    kinds = {t.name: t.data_type for t in onnx.load(tmp_path / "small.onnx").graph.initializer if len(t.dims) == 4}
    assert set(kinds.values()) == {onnx.TensorProto.INT8}
    scales = [t for t in onnx.load(tmp_path / "small.onnx").graph.initializer if t.name.endswith("weight_scale")]
    assert any(list(t.dims) == [64] for t in scales)
    assert [path.name for path in tmp_path.iterdir()] == ["small.onnx"]


def test_calibration_batches_are_cut_to_the_size_that_the_file_takes(tmp_path: Path) -> None:
    rows = torch.cat([X, X + 0.1, X[:3] + 9.0])  # the last three fill no batch of four
    for name, batches in (("cut", [rows]), ("whole", [X, X + 0.1])):
        export_int8(net(), tmp_path / f"{name}.onnx", X, batches)
    assert (tmp_path / "cut.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (X[:3], r"No calibration batch fills the shapes that the file takes, \[\(4, 3, 8, 8\)\]"),
        (X[:, :, :4], r"A calibration batch has shapes \[\(4, 3, 4, 8\)\], but the file takes \[\(4, 3, 8, 8\)\]"),
        ((X, X), "but the file takes"),
    ],
)
def test_calibration_batches_of_other_shapes_are_refused(tmp_path: Path, batch: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        export_int8(net(), tmp_path / "small.onnx", X, [batch])
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_calibration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No calibration 'mse' in ONNX Runtime"):
        export_int8(net(), tmp_path / "small.onnx", X, [X], calibration="mse")


def test_torchao_int4_does_not_pass_over_every_layer_in_silence() -> None:
    """Inputs of 64 fill no group of 128: torchao would leave the layer alone, and the copy would compute as before."""
    pytest.importorskip("torchao")
    with pytest.raises(
        ConfigError, match=r"left every linear layer as it is.*fits none, such as '0' of shape \[32, 64\]"
    ):
        int4_weights(nn.Sequential(nn.Linear(64, 32)))
    (found,) = realise(nn.Linear(64, 32), torch.zeros(1, 64), backends=["torchao int4 weights"])
    assert isinstance(found, Unavailable)


def test_torchao_int8_is_near_and_small() -> None:
    pytest.importorskip("torchao")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)).eval()
    (found,) = realise(model, torch.randn(8, 256), backends=["torchao int8 dynamic"], repeats=3, warmup=1)
    assert isinstance(found, Realised), found
    assert found.max_difference < 0.05
    assert found.small_bytes < 0.3 * found.float_bytes
    assert type(int8_dynamic(model)[0].weight) is not nn.Parameter
    assert type(model[0].weight) is nn.Parameter


def test_what_has_no_kernel_says_so() -> None:
    pytest.importorskip("torchao")
    if torch.cuda.is_available():
        pytest.skip("there is a kernel here")
    with pytest.raises(ConfigError, match=r"torchao .* has no Int4WeightOnlyConfig for cpu in bfloat16"):
        int4_weights(nn.Linear(256, 256))
    (found,) = realise(nn.Linear(256, 256), torch.zeros(1, 256), backends=["torchao int4 weights"])
    assert isinstance(found, Unavailable)
    assert "not here" in str(found)


def test_what_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(ConfigError, match="torchao is not installed"):
        int8_dynamic(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match="no linear layer"):
        int8_dynamic(nn.Conv1d(2, 2, 1))
