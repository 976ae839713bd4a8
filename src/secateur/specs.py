"""Example inputs as plain data: shapes and dtypes in JSON, and tensors made from them again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from secateur.errors import PlanError
from secateur.tensors import Inputs


def to_spec(inputs: Inputs | Any) -> Any:
    """Describe inputs in JSON. Values are not kept, but for the range of integers: token ids must stay in range, and a
    mask of ones, by which code may choose its operators, stays one.

    >>> to_spec({"x": torch.zeros(1, 3), "n": 2})
    {'x': {'shape': [1, 3], 'dtype': 'float32'}, 'n': 2}
    """
    if isinstance(inputs, Tensor):
        spec: dict[str, Any] = {"shape": list(inputs.shape), "dtype": str(inputs.dtype).removeprefix("torch.")}
        if not inputs.dtype.is_floating_point and not inputs.is_meta and inputs.numel():
            spec |= {"low": int(inputs.min()), "high": int(inputs.max()) + 1}
        return spec
    if isinstance(inputs, Mapping):
        return {str(key): to_spec(value) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return [to_spec(value) for value in inputs]
    if inputs is None or isinstance(inputs, bool | int | float | str):
        return inputs
    raise PlanError(
        f"An example input of type {type(inputs).__name__} can't be written down."
        " Pass tensors, numbers, strings, None, and lists or dicts of them."
    )


def from_spec(spec: Any, *, seed: int = 0, device: torch.device | str = "cpu") -> Any:
    """Make inputs of a spec: floats from a standard normal, integers uniform in [low, high), [0, 2) where unknown.

    >>> from_spec([{"shape": [2], "dtype": "int64", "high": 1}])
    (tensor([0, 0]),)
    """
    generator = torch.Generator().manual_seed(seed)

    def make(part: Any) -> Any:
        if is_tensor_spec(part):
            dtype = getattr(torch, part["dtype"])
            if dtype.is_floating_point or dtype.is_complex:
                return torch.randn(part["shape"], generator=generator).to(dtype).to(device)
            low, high = part.get("low", 0), part.get("high", 2)
            return torch.randint(low, high, part["shape"], generator=generator).to(dtype).to(device)
        if isinstance(part, Mapping):
            return {key: make(value) for key, value in part.items()}
        return tuple(make(value) for value in part) if isinstance(part, list) else part

    return make(spec)


def is_tensor_spec(part: Any) -> bool:
    """True for {"shape": …, "dtype": …}."""
    return isinstance(part, Mapping) and part.keys() >= {"shape", "dtype"}
