"""Batch-norm scale: a channel that its norm scales down is a channel that the network turned off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.magnitude import L2, magnitude_scores
from secateur.criteria.options import NORMALIZERS, Normalize, check_choice, check_fallback, normalized
from secateur.errors import GroupError

if TYPE_CHECKING:
    from secateur.dims.groups import Group


def scale_scores(scales: Sequence[Tensor]) -> Tensor:
    """Score units by their norms' scales: score[c] = mean over norms n and positions k of |gamma_n[c, k]|.

    Args:
        scales: one (size, k) per norm; k is 1 unless the norm's weight repeats over positions.
    Returns:
        (size,) float32, same device, no grad. Larger = keep.

    >>> import torch
    >>> scale_scores([torch.tensor([[0.5], [-2.0]]), torch.tensor([[1.0], [0.0]])])
    tensor([0.7500, 1.0000])
    """
    return magnitude_scores(scales, p=1) / sum(rows.shape[1] for rows in scales)


@CRITERIA.register("bn_scale")
@dataclass(frozen=True, kw_only=True)
class BnScale(Criterion):
    """Norm scale: score[c] = mean over the group's norms n of |gamma_n[c]|.

    Source: Liu et al., "Learning Efficient Convolutional Networks through Network Slimming", ICCV 2017, section 3.
    Differs: the paper has one batch norm per channel, trained with an L1 penalty; this averages over all norms of the
    group (a residual stream has several), which leaves its scale as it is, and takes layer norms too. A group without a
    norm, which the paper leaves alone, is scored by `fallback`, scaled to mean 1: about what the scales of an
    unpenalised batch norm start from. After training with the penalty, scales are far below 1 and fallback groups are
    pruned last; `normalize="mean"` puts both kinds on one scale, and `fallback=None` makes such a group an error.

    >>> BnScale().fallback.name
    'l2'
    """

    name: ClassVar[str] = "bn_scale"
    normalize: Normalize = "none"  # the paper ranks raw scales over all layers
    fallback: Criterion | None = L2()

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMALIZERS)
        check_fallback(self.fallback)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return |gamma| per unit, or the fallback's scores at mean 1; GroupError if there is neither."""
        if scales := context.slices(group, ("scale",)):
            return normalized(scale_scores(scales), self.normalize)
        if self.fallback is None:
            raise GroupError(
                f"Group '{group.name}' has no norm scale, so bn_scale cannot score it. "
                "Set fallback=L2() or another criterion, or freeze the group."
            )
        scores = self.fallback.score(group, context)
        return normalized(scores, "max" if self.normalize == "max" else "mean")
