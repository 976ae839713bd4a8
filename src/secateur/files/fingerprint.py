"""What a model computes, in a few numbers: stored on saving, computed again on loading.

Inputs are made from their shapes and a seed (`secateur.specs`), so they need not be stored. It tells another
architecture, another version of its code, or weights in the wrong places from the model that was saved.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import FileError
from secateur.forward import plain_forward
from secateur.measure.modes import device_of
from secateur.specs import from_spec, is_tensor_spec
from secateur.tensors import as_call, tensors_in

TOLERANCES = {"float64": 1e-6, "float32": 1e-3, "float16": 5e-2, "bfloat16": 1e-1}
"""Largest difference, relative to the largest value, that other hardware or another torch may cause, by dtype."""
N_FIRST = 8
MAX_NUMBERS = 2**28  # in all inputs together: a hostile file can't ask for more


@dataclass(frozen=True)
class OutputSketch:
    """One output tensor. Numbers that are not finite are counted and taken as 0; integers have no sketch."""

    shape: tuple[int, ...]
    dtype: str
    first: tuple[float, ...] = ()
    mean: float = 0.0
    norm: float = 0.0
    max_abs: float = 0.0
    n_nonfinite: int = 0


@dataclass(frozen=True)
class Fingerprint:
    """Inputs as a spec with a seed, and a sketch of every output."""

    seed: int
    inputs: Any
    outputs: tuple[OutputSketch, ...]


def take_fingerprint(model: nn.Module, spec: Any, *, seed: int = 0) -> Fingerprint:
    """Run the model in eval mode on inputs made from a spec, and sketch its outputs. The random state is given back."""
    check_spec(spec)
    args, kwargs = as_call(from_spec(spec, seed=seed, device=device_of(model)))
    with torch.random.fork_rng(), plain_forward(model):
        torch.manual_seed(seed)  # a forward that draws random numbers draws the same ones again
        outputs = tensors_in(model(*args, **kwargs))
    return Fingerprint(seed=seed, inputs=spec, outputs=tuple(map(_sketch, outputs)))


def cast_spec(spec: Any, dtype: torch.dtype) -> Any:
    """Return the spec with this dtype for all floating inputs, for a model that was converted after planning."""
    name = str(dtype).removeprefix("torch.")

    def cast(part: Any) -> Any:
        if is_tensor_spec(part):
            floats = getattr(torch, part["dtype"]).is_floating_point
            return {**part, "dtype": name} if floats else part
        if isinstance(part, Mapping):
            return {key: cast(value) for key, value in part.items()}
        return [cast(value) for value in part] if isinstance(part, list | tuple) else part

    return cast(spec)


def differences(stored: Fingerprint, now: Fingerprint, dtypes: tuple[str, ...]) -> list[str]:
    """Say where two fingerprints differ by more than rounding; none of it where they agree.

    Args:
        dtypes: of the model's weights, without `torch.`; what the coarsest of them may cause is allowed.
    """
    if len(stored.outputs) != len(now.outputs):
        return [f"{len(now.outputs)} outputs, {len(stored.outputs)} were stored"]
    found = []
    for i, (a, b) in enumerate(zip(stored.outputs, now.outputs, strict=True)):
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            found.append(f"output {i} is {list(b.shape)} {b.dtype}, stored was {list(a.shape)} {a.dtype}")
            continue
        allowed = max((TOLERANCES.get(name, 0.0) for name in (a.dtype, *dtypes)), default=0.0)
        scale = max(a.max_abs, b.max_abs)
        gaps = [abs(x - y) for x, y in zip(a.first, b.first, strict=True)] + [abs(a.mean - b.mean)]
        gaps += [abs(a.max_abs - b.max_abs), abs(a.norm - b.norm) * scale / max(a.norm, b.norm, 1e-300)]
        if a.n_nonfinite != b.n_nonfinite or max(gaps) > allowed * scale:
            found.append(
                f"output {i} differs by {max(gaps):.2e} at a scale of {scale:.2e}; {allowed:.0e} of it is allowed"
            )
    return found


def check_spec(spec: Any) -> None:
    """Raise FileError unless a spec describes inputs that can be made: known dtypes, sane shapes, not too much."""
    total = 0
    for part in pytree.tree_leaves(spec, is_leaf=is_tensor_spec):
        if not is_tensor_spec(part):
            continue
        dtype, shape = getattr(torch, str(part["dtype"]), None), part["shape"]
        low, high = part.get("low", 0), part.get("high", 2)
        sane = isinstance(shape, list | tuple) and all(type(n) is int and n >= 0 for n in shape)
        if not (
            isinstance(dtype, torch.dtype) and sane and type(low) is type(high) is int and -(2**62) < low < high < 2**62
        ):
            raise FileError(f"{part!r} does not describe an input. Save the model again with Secateur.")
        total += math.prod(shape)
    if total > MAX_NUMBERS:
        raise FileError(f"The stored inputs hold {total:,} numbers, more than {MAX_NUMBERS:,}. Save with smaller ones.")


def _sketch(output: Tensor) -> OutputSketch:
    shape, dtype = tuple(output.shape), str(output.dtype).removeprefix("torch.")
    if not (output.is_floating_point() or output.is_complex()) or output.numel() == 0:
        return OutputSketch(shape, dtype)
    values = (torch.view_as_real(output) if output.is_complex() else output).detach().cpu().double().flatten()
    is_finite = values.isfinite()
    values = torch.where(is_finite, values, 0.0)
    return OutputSketch(
        shape,
        dtype,
        first=tuple(values[:N_FIRST].tolist()),
        mean=values.mean().item(),
        norm=values.norm().item(),
        max_abs=values.abs().max().item(),
        n_nonfinite=int((~is_finite).sum()),
    )
