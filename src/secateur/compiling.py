"""`torch.compile`, said clearly: without a compiler, or for a model it can't do, the error says what and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from secateur.errors import ConfigError, first_line


def compiled(model: nn.Module) -> nn.Module:
    """The same model, on the same parameters, as one program for each shape that it is called with; made at that call.

    Raises:
        ConfigError: on the CPU, there is no C++ compiler.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise ConfigError("torch.compile needs a C++ compiler here and found none. Install g++ or clang.") from error
    program: nn.Module = torch.compile(model, dynamic=False)  # type: ignore[assignment]
    return program


@contextmanager
def never_eager() -> Iterator[None]:
    """Within it, a compiled model that has had too many programs raises; left alone, dynamo would go on without any."""
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield


def is_compilers(error: Exception) -> bool:
    """Say whether the compiler failed, not the model's own code."""
    from torch._dynamo import exc

    return isinstance(error, exc.TorchDynamoException | exc.FailOnRecompileLimitHit)


def cant_compile(model: nn.Module, error: Exception) -> str:
    """The sentence that says which model, and why."""
    return f"torch.compile can't do {type(model).__name__}: {type(error).__name__}: {first_line(error).rstrip('.')}."
