"""Choosing ranks: by energy in each layer, or for all layers together under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.allocate import Allocation, AllocationMethod, Budget, ErrorCurve, Space, allocate
from secateur.dims.cost import Cost
from secateur.errors import GroupError
from secateur.lowrank.forms import FORMS, Level, Parts, Rank
from secateur.lowrank.layers import kernel_of
from secateur.lowrank.sites import Site

MAX_LEVELS = 64
"""Ranks of one layer among which a budget chooses."""


@dataclass(frozen=True)
class Candidate:
    """A layer taken apart, and the ranks that save parameters and cost no more MACs, the smallest first."""

    site: Site
    form: str
    parts: Parts
    levels: tuple[Level, ...]

    def cost(self, rank: Rank | None) -> tuple[int, int]:
        """(parameters, MACs) at a rank; None is the layer as it was."""
        return self.site.cost() if rank is None else self.site.cost(FORMS[self.form](), rank)


def candidate(site: Site, form: str, gram: Tensor | None) -> Candidate | str:
    """Take a layer apart, or say why that is no use.

    Raises:
        GroupError: its weight or its Gram matrix holds NaN or Inf.
    """
    kernel = kernel_of(site.layer).detach()
    maker = FORMS[form]()
    if fault := maker.fault(kernel.shape):
        return fault
    if not (torch.isfinite(kernel).all() and (gram is None or torch.isfinite(gram).all())):
        raise GroupError(f"'{site.fqn}' holds or reads NaN or Inf. Check the weights and the calibration data.")
    parts = maker.take_apart(kernel.double(), gram)
    made = Candidate(site, form, parts, ())
    params, macs = made.cost(None)
    costs = [(level, made.cost(level[0])) for level in parts.levels()]
    saving = tuple(level for level, (p, m) in costs if p < params and m <= macs)
    return Candidate(site, form, parts, saving) if saving else "no rank saves parameters without costing MACs"


def by_energy(found: Sequence[Candidate], energy: float) -> dict[str, Rank | None]:
    """The least rank of each layer that keeps this fraction of its energy; None where only the whole layer does."""
    return {c.site.fqn: next((rank for rank, error in c.levels if 1 - error >= energy), None) for c in found}


def by_budget(
    found: Sequence[Candidate], whole: Cost, budget: Budget, method: AllocationMethod | str
) -> tuple[dict[str, Rank | None], Allocation]:
    """The ranks of least total error under a budget; None leaves a layer whole.

    The error of a layer is relative to its own energy, and these add up. Widths of the allocation are levels: the k-th
    saving rank, and one more for the whole layer.

    Args:
        whole: what the model costs now.
    """
    ladders = {c.site.fqn: [*(rank for rank, _ in _spread(c.levels)), None] for c in found}
    steps = {c.site.fqn: [c.cost(rank) for rank in ladders[c.site.fqn]] for c in found}

    def cost(counts: Mapping[str, int]) -> Cost:
        saved = [
            [dense - now for dense, now in zip(steps[fqn][-1], steps[fqn][n - 1], strict=True)]
            for fqn, n in counts.items()
        ]
        params, macs = (sum(column) for column in zip(*saved, strict=True)) if saved else (0, 0)
        return Cost(whole.params - params, whole.macs - macs)

    curves = {c.site.fqn: _curve(_spread(c.levels)) for c in found}
    space = Space({fqn: len(ladder) for fqn, ladder in ladders.items()}, cost)
    chosen = allocate(curves, space, budget, method)
    return {fqn: ladders[fqn][len(keep) - 1] for fqn, keep in chosen.keep.items()}, chosen


def _spread(levels: Sequence[Level]) -> list[Level]:
    """At most `MAX_LEVELS` of them, evenly, the ends included."""
    at = torch.linspace(0, len(levels) - 1, min(len(levels), MAX_LEVELS)).round().long()
    return [levels[i] for i in at.tolist()]


def _curve(levels: Sequence[Level]) -> ErrorCurve:
    errors = [1.0, *(error for _, error in levels), 0.0]
    return ErrorCurve(torch.tensor(errors, dtype=torch.float64), torch.arange(len(errors) - 1))
