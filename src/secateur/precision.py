"""What products and convolutions are computed in: float32, or bfloat16 where the device has units for it."""

from __future__ import annotations

import logging
from functools import cache

import torch

from secateur.errors import ConfigError

log = logging.getLogger(__name__)

PRECISIONS = ("fp32", "bf16", "auto")
_BF16_UNITS = ("avx512_bf16", "amx_bf16", "bf16")  # of processors, as torch names them; the last is ARM's


def check_precision(precision: str) -> None:
    """Raise ConfigError where it is none of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision={precision!r} is none of {', '.join(PRECISIONS)}.")


def product_dtype(precision: str, device: torch.device | str) -> torch.dtype | None:
    """What products of float32 are computed in on a device; None for float32 itself.

    "auto" is bfloat16 where the device has units for it. "bf16" is bfloat16 anywhere, and is warned of elsewhere:
    a processor that makes it of other instructions may take many times as long as in float32.

    >>> product_dtype("fp32", "cpu") is None
    True
    """
    check_precision(precision)
    if precision == "fp32":
        return None
    if has_bf16_units(device):
        return torch.bfloat16
    if precision == "auto":
        return None
    _warn_of(torch.device(device).type)
    return torch.bfloat16


@cache  # once for each kind of device, not for each segment that is fitted
def _warn_of(kind: str) -> None:
    log.warning("precision='bf16', but no units for bfloat16 are known of this %s; 'auto' takes fp32 here.", kind)


def has_bf16_units(device: torch.device | str) -> bool:
    """Say whether a device computes in bfloat16 itself; False where that is not known."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu":
        return False
    # Younger than the oldest torch that is supported, which says less.
    capabilities = getattr(torch.cpu, "get_capabilities", None)
    if capabilities is None:
        return bool(torch.cpu._is_avx512_bf16_supported())
    found = capabilities()
    return any(found.get(name, False) for name in _BF16_UNITS)
