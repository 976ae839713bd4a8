"""The registry of builtin networks. Files of this package fill it; a user may add her own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from secateur.registry import Registry

MODELS: Registry[str, Callable[..., nn.Module]] = Registry("model")
