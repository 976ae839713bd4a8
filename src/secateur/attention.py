"""Attention as one operator of a record, whatever kernel torch picks for it.

`scaled_dot_product_attention` picks a kernel by sizes, layout, device and mask, or spells it out in a dozen operators.
A smaller network may get another one, and two records of one network could not be compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import has_torch_function
from torch.utils._python_dispatch import _get_current_dispatch_mode

_torchs = F.scaled_dot_product_attention
_library = torch.library.Library("secateur", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.,"
    " bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"
)
_library.impl("attention", _torchs, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("secateur::attention", _torchs, lib=_library)
ATTENTION = torch.ops.secateur.attention.default


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *args: Any, **kw: Any
) -> Tensor:
    """`scaled_dot_product_attention`, as one operator where one is watched for."""
    is_watched = _get_current_dispatch_mode() is not None and not has_torch_function((query, key, value, attn_mask))
    call = ATTENTION if is_watched else _torchs
    return call(query, key, value, attn_mask, *args, **kw)


@contextlib.contextmanager
def one_attention() -> Iterator[None]:
    """Let code that calls torch's attention, or a module of torch that does, call `secateur::attention` inside."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before
