"""What runs a model: eager PyTorch, `torch.compile`, ONNX Runtime. Each turns a model into a call on fixed inputs."""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.compiling import cant_compile, never_eager
from secateur.compiling import compiled as compile_model
from secateur.errors import FileError
from secateur.registry import Registry
from secateur.tensors import Inputs, as_call, tensors_in

Call = Callable[[], Any]
Runtime = Callable[[nn.Module, Inputs], Call]
RUNTIMES: Registry[str, Runtime] = Registry("runtime")
"""By name: (model in eval mode, inputs on its device) -> the forward as a call, on as many threads as torch has now."""


@RUNTIMES.register("eager")
def eager(model: nn.Module, inputs: Inputs) -> Call:
    """Operator by operator, as PyTorch runs it by default."""
    args, kwargs = as_call(inputs)
    return lambda: model(*args, **kwargs)


@RUNTIMES.register("compile")
def compiled(model: nn.Module, inputs: Inputs) -> Call:
    """`torch.compile` with its default backend, for these shapes alone; compiled before it is returned.

    Raises:
        ConfigError: on the CPU, there is no C++ compiler.
        FileError: the model can't be compiled.
    """
    args, kwargs = as_call(inputs)
    program = compile_model(model)
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), never_eager():
            warnings.simplefilter("ignore")
            program(*args, **kwargs)
    except Exception as error:  # the compiler runs the model's own code: anything may come out of it
        raise FileError(cant_compile(model, error)) from error
    finally:
        log.setLevel(level)
    return lambda: program(*args, **kwargs)


@RUNTIMES.register("onnx")
def onnx(model: nn.Module, inputs: Inputs) -> Call:
    """ONNX Runtime on the CPU, from a file that `export` wrote and compared; its threads sleep between calls.

    Raises:
        ConfigError: the extra `onnx` is not installed.
        FileError, VerifyError: see `secateur.export`.
    """
    from secateur.frameworks.export import export

    with tempfile.TemporaryDirectory() as folder, torch.inference_mode(False):
        written = export(model, f"{folder}/model.onnx", inputs)
        return onnx_call(written.path, written.inputs, inputs)


def onnx_call(path: Path, names: Sequence[str], inputs: Inputs) -> Call:
    """The forward of an ONNX file whose inputs have these names; it gives a list of arrays."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    read = {entry.name for entry in session.get_inputs()}
    tensors = tensors_in(as_call(inputs))
    feed = {name: t.cpu().numpy() for name, t in zip(names, tensors, strict=True) if name in read}
    return lambda: session.run(None, feed)
