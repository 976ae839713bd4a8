"""The forms that a model is exported in, ONNX and `torch.export`: each is written, and opened again in a runtime."""

from __future__ import annotations

import functools
import importlib
import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, FileError
from secateur.tensors import tensors_in

_ONE_FILE = 2**31 - 2**24  # bytes of weights that fit into one protocol buffer, with room for the graph


@dataclass(frozen=True)
class Call:
    """The arguments of a forward."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors among them, in order."""
        return tensors_in((self.args, self.kwargs))


class Plain(nn.Module):
    """A model whose output is a tensor, or plain dicts and tuples of tensors: files know no other classes.

    Its forward has the signature of the model's: `torch.export` writes conditions on the inputs by their names.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.forward = functools.partial(self._run)
        self.forward.__signature__ = inspect.signature(model.forward)  # type: ignore[attr-defined]

    def _run(self, *args: Any, **kwargs: Any) -> Any:
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


@dataclass(frozen=True)
class Order:
    """What is to be written.

    Attributes:
        call: what the forward is followed on.
        batched: the tensors of the call whose first axis may have any size; none where all sizes are fixed.
        inputs, outputs: names of the tensors.
    """

    model: Plain
    call: Call
    batched: list[Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    @property
    def dynamic_shapes(self) -> Any:
        """As `torch.export` takes them; None where all sizes are fixed."""
        if not self.batched:
            return None
        batch = torch.export.Dim("batch")
        shapes = torch.export.ShapesCollection()  # type: ignore[no-untyped-call]
        for t in self.batched:
            shapes[t] = {0: batch}
        return shapes.dynamic_shapes(self.model, self.call.args, self.call.kwargs)  # type: ignore[no-untyped-call]

    def failed(self, what: str, error: Exception) -> FileError:
        """The error of a library, in a line."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = error.__cause__
        if cause is not None and str(cause).strip():
            lines = [f"{type(cause).__name__}: {str(cause).strip().splitlines()[0]}"]
        advice = "Its forward may need one size: leave out dynamic_batch" if self.batched else "Try another dtype"
        return FileError(
            f"{what} can't do {type(self.model.model).__name__}{' for any batch' * bool(self.batched)}:"
            f" {type(error).__name__}: {(lines or ['no message'])[0][:300]}. Nothing was written."
            f" {advice}, or the other form (.onnx or .pt2)."
        )


@dataclass(frozen=True)
class Opened:
    """A file that was written, in a runtime."""

    run: Callable[[Call], list[Tensor]]
    runtime: str
    opset: int | None = None


def writer(suffix: str) -> Callable[[Order, Path], Opened]:
    """What writes files of a suffix. Raises ConfigError for another one, or where a library is not installed."""
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


def _write_program(order: Order, path: Path) -> Opened:
    def run(call: Call) -> list[Tensor]:
        try:
            return tensors_in(loaded(*call.args, **call.kwargs))
        except Exception as error:
            raise order.failed("torch.export", error) from error

    try:
        shapes = order.dynamic_shapes
        torch.export.save(
            torch.export.export(order.model, order.call.args, order.call.kwargs, dynamic_shapes=shapes), path
        )
        loaded = torch.export.load(path).module()
    except OSError:
        raise
    except Exception as error:  # the exporter runs the model's own code: anything may come out of it
        raise order.failed("torch.export", error) from error
    return Opened(run, "torch.export")


def _write_onnx(order: Order, path: Path) -> Opened:
    try:
        program = torch.onnx.export(
            order.model,
            order.call.args,
            kwargs=order.call.kwargs,
            dynamo=True,
            input_names=order.inputs,
            output_names=order.outputs,
            dynamic_shapes=order.dynamic_shapes,
            verbose=False,
        )
        assert program is not None
        n_bytes = sum(t.nbytes for t in (*order.model.parameters(), *order.model.buffers()))
        program.save(path, external_data=n_bytes > _ONE_FILE)
    except OSError:
        raise
    except Exception as error:
        raise order.failed("torch.onnx", error) from error
    return _open_onnx(order, path)


def _open_onnx(order: Order, path: Path) -> Opened:
    import onnxruntime

    def run(call: Call) -> list[Tensor]:
        given = {name: t.cpu().numpy() for name, t in zip(order.inputs, call.tensors, strict=True) if name in wanted}
        try:
            return [torch.from_numpy(r) for r in session.run(None, given)]
        except Exception as error:
            raise order.failed("ONNX Runtime", error) from error

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        opset = _opset(path)
    except Exception as error:  # its errors share no class of their own
        raise order.failed("ONNX Runtime", error) from error
    wanted = {entry.name for entry in session.get_inputs()}  # inputs that the outputs don't depend on are dropped
    return Opened(run, f"ONNX Runtime {onnxruntime.__version__}", opset)


def _opset(path: Path) -> int:
    import onnx

    imports = onnx.load(str(path), load_external_data=False).opset_import
    return next(int(entry.version) for entry in imports if entry.domain == "")
