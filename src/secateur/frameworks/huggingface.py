"""Hugging Face Transformers: what its models need to be captured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from torch import nn

_EXPERTS = "_experts_implementation"


@contextlib.contextmanager
def traceable_experts(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run mixtures of experts as batched matrix products inside.

    The default implementations loop over the experts that the tokens of one batch happen to hit, or call a grouped
    kernel; the batched one computes the same from shapes alone.
    """
    configs = {id(c): c for m in modules if getattr(c := vars(m).get("config"), _EXPERTS, None)}
    before = [(config, getattr(config, _EXPERTS)) for config in configs.values()]
    for config, _ in before:
        setattr(config, _EXPERTS, "batched_mm")
    try:
        yield
    finally:
        for config, value in before:
            setattr(config, _EXPERTS, value)
