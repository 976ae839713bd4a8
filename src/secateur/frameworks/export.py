"""Export: a model as one file that needs none of its code, ONNX or `torch.export`, compared with the model at once."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import ConfigError, FileError, VerifyError
from secateur.files.atomic import describe, flush
from secateur.forward import plain_forward
from secateur.frameworks.difference import largest_difference
from secateur.frameworks.export_forms import Call, Order, Plain, writer
from secateur.tensors import Inputs, on_device, tensors_in
from secateur.verification import TOLERANCES

_LOGS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")


@dataclass(frozen=True)
class ExportReport:
    """What was written, and how far it is from the model.

    Attributes:
        path: the file; weights beyond 2 GB of an ONNX model are beside it, in `path` + ".data".
        size_bytes: of all that was written.
        max_difference: the largest |model - file| over the largest |model|, over all outputs.
        tolerance: what was allowed.
        runtime: what computed the file's outputs.
        opset: of ONNX; None for .pt2.
        inputs, outputs: names of the tensors.
        batches: sizes of the batch that were compared, where it may have any; empty where all shapes are fixed.
    """

    path: Path
    size_bytes: int
    max_difference: float
    tolerance: float
    runtime: str
    opset: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batches: tuple[int, ...] = ()

    def __str__(self) -> str:
        form = f"ONNX opset {self.opset}" if self.opset is not None else "torch.export"
        return (
            f"{self.path}: {form}, {self.size_bytes:,} bytes; largest relative difference {self.max_difference:.1e}"
            f" (tolerance {self.tolerance:.0e}) in {self.runtime}"
            + (f"; any batch, compared at {', '.join(map(str, self.batches))}" if self.batches else "")
        )


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Inputs,
    *,
    dynamic_batch: bool = False,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write `model` as `path`, run what was written on the same inputs, and compare.

    Shapes are those of the inputs, but for the batch where that is asked. The file gives a tensor, or
    the tensors of the model's output by name.

    Args:
        model: any module; it is left as it was found. It is exported in eval mode.
        path: ends in ".onnx" (run by ONNX Runtime) or ".pt2" (loaded by `torch.export.load`).
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, with real values.
        dynamic_batch: let the first axis of the inputs, where it is as long as that of the first one, have any size.
            The file is compared at 1, at that of the inputs (at least 2) and at one more, on their rows over again.
        tolerance: largest relative difference allowed; by default that of the outputs' dtype.
        overwrite: replace the file if it is there.
    Raises:
        ConfigError: another suffix, the extra `onnx` is not installed, or the inputs have no batch.
        FileError: the exporter or the runtime can't do this model, for any batch where that is asked, or the system
            refuses to write.
        VerifyError: the file does not compute what the model does.
        In all cases nothing is left behind, and what was there is unchanged.

    >>> import tempfile
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> with tempfile.TemporaryDirectory() as there:
    ...     report = export(net, f"{there}/net.pt2", torch.ones(1, 3))
    >>> report.max_difference, report.outputs
    (0.0, ('output',))
    """
    target = Path(os.path.abspath(path))
    write = writer(target.suffix)
    _check(model, target, overwrite=overwrite)
    given = Call(*on_device(model, inputs))
    calls = _batches(given) if dynamic_batch else {0: given}
    with plain_forward(model), _quiet():
        plain = Plain(model)
        expected = {size: _expected(plain, call, size) for size, call in calls.items()}
        size, call = next(iter(calls.items()))
        names = tuple(_input_names(model, call.args, call.kwargs))
        order = Order(plain, call, _batched(call) if dynamic_batch else [], names, tuple(expected[size]))
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        except OSError as error:
            raise FileError(describe(error, target)) from error
        try:
            made = write(order, folder / target.name)
            gaps = [_compare(expected[n], made.run(one), made.runtime, tolerance, target) for n, one in calls.items()]
            files = sorted(folder.iterdir(), reverse=True)  # weights first: a graph without them is no model
            size_bytes = sum(file.stat().st_size for file in files)
            for file in files:
                flush(file)
                file.replace(target.with_name(file.name))
        except OSError as error:
            raise FileError(describe(error, target)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    largest, allowed = max(gaps)
    batches = tuple(calls) if dynamic_batch else ()
    return ExportReport(
        Path(path), size_bytes, largest, allowed, made.runtime, made.opset, names, order.outputs, batches
    )


def _batches(call: Call) -> dict[int, Call]:
    """The same rows in batches of other sizes; first the one to follow, of two or more, as one is a case of its own."""
    if not call.tensors or call.tensors[0].dim() == 0:
        raise ConfigError("The first input has no axis for a batch. Leave out dynamic_batch.")
    n, batched = len(call.tensors[0]), {id(t) for t in _batched(call)}

    def rows(size: int) -> Call:
        again = torch.arange(size) % n
        return Call(
            *pytree.tree_map_only(
                Tensor, lambda t: t[again.to(t.device)] if id(t) in batched else t, (call.args, call.kwargs)
            )
        )

    followed = max(2, n)
    return {size: rows(size) for size in (followed, 1, followed + 1)}


def _batched(call: Call) -> list[Tensor]:
    return [t for t in call.tensors if t.dim() and len(t) == len(call.tensors[0])]


def _expected(model: Plain, call: Call, size: int) -> dict[str, Tensor]:
    try:
        return _named(model(*call.args, **call.kwargs))
    except Exception as error:
        if not size:
            raise
        raise FileError(
            f"The forward of {type(model.model).__name__} fails on a batch of {size}: {type(error).__name__}: {error}."
            " Nothing was written. Leave out dynamic_batch."
        ) from error


def _named(result: Any) -> dict[str, Tensor]:
    if isinstance(result, Tensor):
        return {"output": result}
    return result if isinstance(result, dict) else {f"output_{i}": t for i, t in enumerate(result)}


def _input_names(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[str]:
    """The names that `forward` gives its tensors; those inside lists and dicts are numbered."""
    parameters = [p for p in inspect.signature(model.forward).parameters.values() if p.kind != p.VAR_KEYWORD]
    for i, value in enumerate(args):
        plain = i < len(parameters) and parameters[i].kind != inspect.Parameter.VAR_POSITIONAL
        yield from _numbered(parameters[i].name if plain else f"input_{i}", value)
    for key, value in kwargs.items():
        yield from _numbered(key, value)


def _numbered(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, Tensor):
        yield name
    else:
        yield from (f"{name}_{i}" for i in range(len(tensors_in(value))))


def _check(model: nn.Module, target: Path, *, overwrite: bool) -> None:
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise FileError(f"{type(model).__name__} is on the meta device and has no values. Load the weights first.")
    if not target.parent.is_dir():
        raise FileError(f"'{target.parent}' is no folder. Make it first, or choose another place.")
    if os.path.lexists(target) and (not overwrite or not target.is_file()):
        raise FileError(f"'{target}' exists. Choose another name, or overwrite it (overwrite=True, --force).")


def _compare(
    expected: Mapping[str, Tensor], found: list[Tensor], runtime: str, tolerance: float | None, target: Path
) -> tuple[float, float]:
    shapes = [list(t.shape) for t in expected.values()]
    if shapes != (others := [list(t.shape) for t in found]):
        raise VerifyError(f"'{target.name}' gives {others} where the model gives {shapes}. Nothing was written.")
    largest = largest_difference(list(expected.values()), found)
    allowed = tolerance if tolerance is not None else max(TOLERANCES.get(t.dtype, 0.0) for t in expected.values())
    if not largest <= allowed:
        raise VerifyError(
            f"'{target.name}' differs from the model by {largest:.2e} of the largest value in {runtime};"
            f" {allowed:.0e} is allowed. Nothing was written. Pass tolerance= if that much is right."
        )
    return largest, allowed


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn about their own insides and log what they do; their errors come through."""
    loggers = [logging.getLogger(name) for name in _LOGS]
    levels = [log.level for log in loggers]
    for log in loggers:
        log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(loggers, levels, strict=True):
            log.setLevel(level)
