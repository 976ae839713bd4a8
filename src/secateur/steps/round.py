"""Rounding what no coding covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from secateur.coding import codings_of
from secateur.steps.base import FORMS, STEPS, Context, Done
from secateur.surgery import copy_model
from secateur.tensors import named_tensors


@STEPS.register("round")
@dataclass(frozen=True, kw_only=True)
class Round:
    """Round biases, norms and other weights without a coding to half precision. The model computes as before.

    The numbers stay of single precision in memory; the compact file stores them in 2 bytes each. Put it last: training
    moves them on.
    """

    name: ClassVar[str] = "round"
    accepts: ClassVar[frozenset[str]] = frozenset(FORMS)
    leaves: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = False

    def run(self, model: nn.Module, context: Context) -> Done:
        """Round a copy. What half precision can't hold (above 65,504 in size) is left as it is, and listed."""
        small = copy_model(model)
        coded = tuple(f"{key.rpartition('.')[0]}.parametrizations.".lstrip(".") for key in codings_of(small))
        skipped = []
        with torch.no_grad():
            for key, t in named_tensors(small).items():
                if t.dtype != torch.float32 or key.startswith(coded):
                    continue
                rounded = t.half().float()
                if rounded.isfinite().all():
                    t.copy_(rounded)
                else:
                    skipped.append((key, "half precision does not reach its largest numbers"))
        return Done(small, skipped=tuple(skipped))
