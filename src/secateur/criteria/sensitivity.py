"""Sensitivity as a criterion: what the predictions lose, measured group by group and level by level."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import nn

from secateur.criteria.base import CRITERIA, Context, Criterion, CurveCriterion, Curves, needs_of, score_groups
from secateur.criteria.magnitude import L2
from secateur.criteria.measure import measure
from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.tensors import Inputs


@CRITERIA.register("sensitivity")
@dataclass(frozen=True, kw_only=True)
class SensitivityScan(CurveCriterion):
    """KL divergence of the predictions when one group alone keeps its best units, at several levels. Needs data.

    See `secateur.sensitivity.scan_sensitivity`; it takes a forward per batch, group and level. Goes with `Lagrangian`
    and `DynamicProgram`, which compare the errors of groups.

    Args:
        criterion: ranks the units within each group; it may need data, but no labels.
        levels: fractions kept, each in (0, 1).
        cache: a folder that keeps scans by content; "" keeps none.
    Source: the scan of Li et al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.2, by another loss.

    >>> SensitivityScan().criterion.name
    'l2'
    """

    name: ClassVar[str] = "sensitivity"
    criterion: Criterion = L2()
    levels: tuple[float, ...] = (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875)
    cache: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.criterion, Criterion) or isinstance(self.criterion, CurveCriterion):
            raise ConfigError(f"criterion={self.criterion!r} does not rank units. Pass one such as L2().")
        if not self.levels or not all(0 < level < 1 for level in self.levels):
            raise ConfigError(
                f"levels={self.levels} must lie within (0, 1). Each is a fraction of a group that is kept."
            )

    def curves(self, model: nn.Module, batches: Iterable[Inputs]) -> Curves:
        """Return the measured curve of every group that may shrink."""
        from secateur.sensitivity import scan_sensitivity

        data = list(batches)
        groups = trace(model, data[0]).prunable if data else []
        measured = measure(model, groups, needs_of(self.criterion), data)
        scores = score_groups(groups, self.criterion, Context.of(model, **measured))
        cache = Path(self.cache) if self.cache else None
        return Curves(scan_sensitivity(model, scores, data, levels=self.levels, cache=cache).curves())
