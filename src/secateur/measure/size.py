"""How large a model is.

What the numbers mean: `size_bytes` is the exact length of the `.safetensors` file that holds the state dict (parameters
and persistent buffers), with its header and with a tensor that occurs under several names stored once, under the first.
Coded weights (`secateur.coding`) count as they are packed.
It is not memory in use. `count_parameters` counts numbers, tied ones once, no buffers.
"""

from __future__ import annotations

import json

import torch
from torch import Tensor, nn

from secateur.coding import pack_state
from secateur.errors import DataError

# The order in which safetensors lays tensors out: wide types first, then by name.
_TYPES: dict[torch.dtype, tuple[int, str]] = {
    torch.bool: (0, "BOOL"),
    torch.uint8: (1, "U8"),
    torch.int8: (2, "I8"),
    torch.float8_e5m2: (3, "F8_E5M2"),
    torch.float8_e4m3fn: (4, "F8_E4M3"),
    torch.int16: (5, "I16"),
    torch.uint16: (6, "U16"),
    torch.float16: (7, "F16"),
    torch.bfloat16: (8, "BF16"),
    torch.int32: (9, "I32"),
    torch.uint32: (10, "U32"),
    torch.float32: (11, "F32"),
    torch.complex64: (12, "C64"),
    torch.float64: (13, "F64"),
    torch.int64: (14, "I64"),
    torch.uint64: (15, "U64"),
}


def unique_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict without second names of one tensor. Works on any device, `meta` too.

    Raises:
        DataError: the state holds something that is no tensor.

    >>> lin = nn.Linear(2, 2)
    >>> list(unique_state(nn.Sequential(lin, lin)))
    ['0.weight', '0.bias']
    """
    unique: dict[str, Tensor] = {}
    seen = set()
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise DataError(f"'{key}' of the state dict is a {type(value).__name__}, which safetensors cannot hold.")
        place = (value.untyped_storage()._cdata, value.storage_offset(), value.shape, value.stride(), value.dtype)
        if place not in seen or value.numel() == 0:
            seen.add(place)
            unique[key] = value.detach()
    return unique


def size_bytes(model: nn.Module) -> int:
    """Return the bytes of the safetensors file of the model's state; see the top of this file.

    Raises:
        DataError: a tensor has a dtype that safetensors does not store.

    >>> size_bytes(nn.Linear(10, 10))  # 8 + 128 of header, 440 of numbers
    576
    """
    state = pack_state(model, unique_state(model))
    unknown = sorted(f"{key} ({t.dtype})" for key, t in state.items() if t.dtype not in _TYPES)
    if unknown:
        raise DataError(f"safetensors cannot hold {', '.join(unknown)}. Unpack quantized tensors to integers first.")
    entries: dict[str, object] = {}
    at = 0
    for key, tensor in sorted(state.items(), key=lambda item: (-_TYPES[item[1].dtype][0], item[0])):
        end = at + tensor.numel() * tensor.element_size()
        entries[key] = {"dtype": _TYPES[tensor.dtype][1], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    header = len(json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + -(-header // 8) * 8 + at  # a length field, the header padded to 8 bytes, the numbers


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Return how many numbers the model's parameters hold, each tied parameter once.

    >>> count_parameters(nn.Linear(10, 10))
    110
    """
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
