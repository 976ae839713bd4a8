"""Export: a model as one file that needs none of its code, ONNX or `torch.export`, compared with the model at once."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, FileError, VerifyError
from secateur.files.atomic import describe, flush
from secateur.forward import plain_forward
from secateur.frameworks.difference import largest_difference
from secateur.tensors import Inputs, on_device, tensors_in
from secateur.verification import TOLERANCES

_ONE_FILE = 2**31 - 2**24  # bytes of weights that fit into one protocol buffer, with room for the graph
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
    """

    path: Path
    size_bytes: int
    max_difference: float
    tolerance: float
    runtime: str
    opset: int | None
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def __str__(self) -> str:
        form = f"ONNX opset {self.opset}" if self.opset is not None else "torch.export"
        return (
            f"{self.path}: {form}, {self.size_bytes:,} bytes; largest relative difference {self.max_difference:.1e}"
            f" (tolerance {self.tolerance:.0e}) in {self.runtime}"
        )


def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    inputs: Inputs,
    *,
    tolerance: float | None = None,
    overwrite: bool = False,
) -> ExportReport:
    """Write `model` as `path`, run what was written on the same inputs, and compare.

    Shapes are those of the inputs. The file gives a tensor, or the tensors of the model's output by name.

    Args:
        model: any module; it is left as it was found. It is exported in eval mode.
        path: ends in ".onnx" (run by ONNX Runtime) or ".pt2" (loaded by `torch.export.load`).
        inputs: a tensor, a tuple of positional or a dict of keyword arguments, with real values.
        tolerance: largest relative difference allowed; by default that of the outputs' dtype.
        overwrite: replace the file if it is there.
    Raises:
        ConfigError: another suffix, or the extra `onnx` is not installed.
        FileError: the exporter or the runtime can't do this model, or the system refuses to write.
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
    write = _writer(target.suffix)
    _check(model, target, overwrite=overwrite)
    args, kwargs = on_device(model, inputs)
    with plain_forward(model), _quiet():
        plain = _Plain(model)
        expected = _named(plain(*args, **kwargs))
        names = tuple(_input_names(model, args, kwargs))
        try:
            folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        except OSError as error:
            raise FileError(describe(error, target)) from error
        try:
            made = write(plain, args, kwargs, names, tuple(expected), folder / target.name)
            largest, allowed = _compare(expected, made, tolerance, target)
            files = sorted(folder.iterdir(), reverse=True)  # weights first: a graph without them is no model
            size_bytes = sum(file.stat().st_size for file in files)
            for file in files:
                flush(file)
                file.replace(target.with_name(file.name))
        except OSError as error:
            raise FileError(describe(error, target)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return ExportReport(Path(path), size_bytes, largest, allowed, made.runtime, made.opset, names, tuple(expected))


@dataclass(frozen=True)
class _Made:
    """What a runtime computed from a file that was written."""

    outputs: list[Tensor]
    runtime: str
    opset: int | None = None


_Write = Callable[["_Plain", tuple[Any, ...], dict[str, Any], tuple[str, ...], tuple[str, ...], Path], _Made]


class _Plain(nn.Module):
    """A model whose output is a tensor, or plain dicts and tuples of tensors: files know no other classes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model."""
        result = self.model(*args, **kwargs)
        if isinstance(result, Tensor):
            return result
        return _flat(result) if isinstance(result, Mapping) else tuple(tensors_in(result))


def _flat(result: Mapping[Any, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in result.items():
        tensors = tensors_in(value)
        found.update({str(key) if len(tensors) == 1 else f"{key}_{i}": t for i, t in enumerate(tensors)})
    return found


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


def _writer(suffix: str) -> _Write:
    if suffix not in (".onnx", ".pt2"):
        raise ConfigError(f"Nothing is exported as {suffix!r}. Name the file model.onnx or model.pt2.")
    if suffix == ".pt2":
        return _write_program
    for module in ("onnx", "onnxscript", "onnxruntime"):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except ImportError as error:
            raise ConfigError(f"{module} is not installed. Get it with: pip install 'secateur[onnx]'") from error
    return _write_onnx


def _check(model: nn.Module, target: Path, *, overwrite: bool) -> None:
    if any(t.is_meta for t in (*model.parameters(), *model.buffers())):
        raise FileError(f"{type(model).__name__} is on the meta device and has no values. Load the weights first.")
    if not target.parent.is_dir():
        raise FileError(f"'{target.parent}' is no folder. Make it first, or choose another place.")
    if os.path.lexists(target) and (not overwrite or not target.is_file()):
        raise FileError(f"'{target}' exists. Choose another name, or overwrite it (overwrite=True, --force).")


def _write_program(
    model: _Plain, args: tuple[Any, ...], kwargs: dict[str, Any], names: Any, outputs: Any, path: Path
) -> _Made:
    try:
        torch.export.save(torch.export.export(model, args, kwargs), path)
        loaded = torch.export.load(path).module()
        return _Made(tensors_in(loaded(*args, **kwargs)), "torch.export")
    except OSError:
        raise
    except Exception as error:  # the exporter runs the model's own code: anything may come out of it
        raise _failed(model, "torch.export", error) from error


def _write_onnx(
    model: _Plain,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    path: Path,
) -> _Made:
    try:
        program = torch.onnx.export(
            model, args, kwargs=kwargs, dynamo=True, input_names=names, output_names=outputs, verbose=False
        )
        assert program is not None
        n_bytes = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
        program.save(path, external_data=n_bytes > _ONE_FILE)
    except OSError:
        raise
    except Exception as error:
        raise _failed(model, "torch.onnx", error) from error
    return _run_onnx(model, path, dict(zip(names, tensors_in((args, kwargs)), strict=True)))


def _run_onnx(model: _Plain, path: Path, inputs: Mapping[str, Tensor]) -> _Made:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        wanted = {entry.name for entry in session.get_inputs()}  # inputs that the outputs don't depend on are dropped
        results = session.run(None, {name: t.cpu().numpy() for name, t in inputs.items() if name in wanted})
        opset = _opset(path)
    except Exception as error:  # its errors share no class of their own
        raise _failed(model, "ONNX Runtime", error) from error
    return _Made([torch.from_numpy(r) for r in results], f"ONNX Runtime {onnxruntime.__version__}", opset)


def _opset(path: Path) -> int:
    import onnx

    imports = onnx.load(str(path), load_external_data=False).opset_import
    return next(int(entry.version) for entry in imports if entry.domain == "")


def _failed(model: _Plain, what: str, error: Exception) -> FileError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = error.__cause__
    if cause is not None and str(cause).strip():
        lines = [f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"]
    return FileError(
        f"{what} can't do {type(model.model).__name__}: {type(error).__name__}:"
        f" {(lines or ['no message'])[0][:300]}. Nothing was written. Try the other form (.onnx or .pt2) or dtype."
    )


def _compare(expected: Mapping[str, Tensor], made: _Made, tolerance: float | None, target: Path) -> tuple[float, float]:
    shapes = [list(t.shape) for t in expected.values()]
    if shapes != (found := [list(t.shape) for t in made.outputs]):
        raise VerifyError(f"'{target.name}' gives {found} where the model gives {shapes}. Nothing was written.")
    largest = largest_difference(list(expected.values()), made.outputs)
    allowed = tolerance if tolerance is not None else max(TOLERANCES.get(t.dtype, 0.0) for t in expected.values())
    if not largest <= allowed:
        raise VerifyError(
            f"'{target.name}' differs from the model by {largest:.2e} of the largest value in {made.runtime};"
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
