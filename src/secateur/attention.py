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

TORCHS = F.scaled_dot_product_attention
_library = torch.library.Library("secateur", "DEF")  # type: ignore[no-untyped-call]
_library.define(  # type: ignore[no-untyped-call]
    "attention(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.,"
    " bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"
)
_library.impl("attention", TORCHS, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
torch.library.register_fake("secateur::attention", TORCHS, lib=_library)
ATTENTION = torch.ops.secateur.attention.default


def _remember(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Tensor) -> None:
    query, key, value, attn_mask, *rest = inputs
    ctx.save_for_backward(query, key, value, attn_mask)
    ctx.call = lambda *tensors: TORCHS(*tensors, *rest, **keyword_only_inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients of torch's attention, computed again: a record's operator has no graph of torch's inside."""
    with torch.enable_grad():
        tensors = [t if t is None else t.detach().requires_grad_(t.is_floating_point()) for t in ctx.saved_tensors]
        wanted = [t for t in tensors if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(ctx.call(*tensors), wanted, grad))
    return *(next(found) if t is not None and t.requires_grad else None for t in tensors), None, None


torch.library.register_autograd("secateur::attention", _backward, setup_context=_remember, lib=_library)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`scaled_dot_product_attention`, as one operator where one is watched for."""
    is_watched = _get_current_dispatch_mode() is not None and not has_torch_function((query, key, value, attn_mask))
    call = ATTENTION if is_watched else TORCHS
    is_shared = enable_gqa and query.shape[-3:-2] != key.shape[-3:-2]  # a flag that changes nothing is left out
    return call(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=is_shared)


@contextlib.contextmanager
def one_attention() -> Iterator[None]:
    """Let code that calls torch's attention, or a module of torch that does, call `secateur::attention` inside."""
    before = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend  # type: ignore[assignment]
    try:
        yield
    finally:
        F.scaled_dot_product_attention = before
