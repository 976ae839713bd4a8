"""Int8 in ONNX Runtime: static ranges of activations, weights per channel, as QuantizeLinear/DequantizeLinear pairs."""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, DataError, FileError
from secateur.frameworks.export import ExportReport, export
from secateur.measure.runtimes import onnx_call
from secateur.quantize.backends.realised import BACKENDS, Prepared, quiet
from secateur.tensors import Inputs, as_call, tensors_in

CALIBRATIONS = {"minmax": "MinMax", "percentile": "Percentile", "kl": "Entropy"}
"""Ours, and what ONNX Runtime calls them."""


def export_int8(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Inputs,
    batches: Sequence[Inputs],
    *,
    calibration: str = "minmax",
    reduce_range: bool = False,
) -> ExportReport:
    """Write `model` as an int8 ONNX file: weights int8 per channel, activations uint8 with ranges seen on batches.

    Args:
        model: without codings (see `secateur.coding.bake`).
        path: ends in ".onnx"; a file that is there is replaced.
        inputs: of the shapes that the file will take.
        batches: inputs of these shapes but for the first axis, which is cut, without labels, to calibrate on.
        calibration: minmax, percentile or kl.
        reduce_range: 7-bit weights, for x86 CPUs without VNNI, whose 8-bit products saturate.
    Returns:
        The report of the float export that it was made from, which was compared with the model.
    Raises:
        ConfigError: onnx or onnxruntime is not installed, or the calibration is unknown.
        DataError: a batch has other shapes.
        FileError, VerifyError: the float export failed, or ONNX Runtime can't quantize it.
    """
    with tempfile.TemporaryDirectory() as folder:
        return _write(model, Path(path), inputs, batches, Path(folder), calibration, reduce_range)


@BACKENDS.register("onnx int8")
@contextlib.contextmanager
def onnx_int8(model: nn.Module, inputs: Inputs, batches: Sequence[Inputs]) -> Iterator[Prepared]:
    """ONNX Runtime on the CPU, float32 against int8."""
    with tempfile.TemporaryDirectory() as name, torch.inference_mode(False):
        folder = Path(name)
        small = folder / "int8.onnx"
        written = _write(model, small, inputs, batches, folder, "minmax", False)
        calls = [onnx_call(file, written.inputs, inputs) for file in (written.path, small)]
        sizes = [file.stat().st_size for file in (written.path, small)]
        yield Prepared(
            runtime=written.runtime,
            float_call=calls[0],
            small_call=calls[1],
            float_bytes=sizes[0],
            small_bytes=sizes[1],
        )


def _write(
    model: nn.Module,
    path: Path,
    inputs: Inputs,
    batches: Sequence[Inputs],
    folder: Path,
    calibration: str,
    reduce_range: bool,
) -> ExportReport:
    if calibration not in CALIBRATIONS:
        raise ConfigError(f"No calibration {calibration!r} in ONNX Runtime. Known: {', '.join(CALIBRATIONS)}.")
    pieces = _pieces(batches, inputs)
    written = export(model, folder / "float.onnx", inputs)
    with quiet(""):  # it advises through warnings and the root logger
        tool: Any = importlib.import_module("onnxruntime.quantization")
        try:
            ready = folder / "ready.onnx"
            tool.quant_pre_process(str(written.path), str(ready), skip_symbolic_shape=True)
            tool.quantize_static(
                str(ready),
                str(path),
                _reader(tool, written.inputs, pieces),
                quant_format=tool.QuantFormat.QDQ,
                per_channel=True,
                reduce_range=reduce_range,
                activation_type=tool.QuantType.QUInt8,
                weight_type=tool.QuantType.QInt8,
                calibrate_method=getattr(tool.CalibrationMethod, CALIBRATIONS[calibration]),
            )
        except Exception as error:  # its errors share no class of their own
            raise FileError(
                f"ONNX Runtime can't quantize {type(model).__name__}: {type(error).__name__}: {error}"
            ) from error
    return written


def _pieces(batches: Sequence[Inputs], inputs: Inputs) -> list[list[Tensor]]:
    """The batches in the shapes that the file takes: cut along the first axis, without a rest that fills no piece."""
    shapes = [tuple(t.shape) for t in tensors_in(as_call(inputs))]
    found: list[list[Tensor]] = []
    for batch in batches:
        given = tensors_in(as_call(batch))
        if (seen := [tuple(t.shape) for t in given]) == shapes:
            found.append(given)
            continue
        sizes, wanted = {shape[:1] for shape in seen}, {shape[:1] for shape in shapes}
        if [shape[1:] for shape in seen] != [shape[1:] for shape in shapes] or len(sizes) > 1 or len(wanted) > 1:
            raise DataError(f"A calibration batch has shapes {seen}, but the file takes {shapes}. Give such samples.")
        n = shapes[0][0]
        found += [[t[i : i + n] for t in given] for i in range(0, seen[0][0] - n + 1, n)]
    if not found:
        raise DataError(f"No calibration batch fills the shapes that the file takes, {shapes}. Give larger batches.")
    return found


def _reader(tool: Any, names: Sequence[str], pieces: Sequence[list[Tensor]]) -> Any:
    """The pieces as ONNX Runtime wants to be given them: one by one, then None."""
    feeds = iter([{name: t.cpu().numpy() for name, t in zip(names, piece, strict=True)} for piece in pieces])

    class Reader(tool.CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Any:
            """The next batch."""
            return next(feeds, None)

    return Reader()
