"""HRank: a feature map of low rank holds little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.magnitude import L2
from secateur.criteria.options import check_fallback, normalized
from secateur.errors import GroupError

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("hrank")
@dataclass(frozen=True, kw_only=True)
class HRank(Criterion):
    """Rank of feature maps: score[c] = mean over samples of rank(x[c]) / full rank, over the group's mean.

    x[c] is the (h, w) map of a unit where it is read, rows of the first axis of positions by all others; of a head, its
    features by positions. Needs data, without labels; a few hundred samples do, since ranks hardly vary.
    Source: Lin et al., "HRank: Filter Pruning using High-Rank Feature Map", CVPR 2020, section 3.
    Differs: ranks are divided by the full rank and by the group's mean, which puts layers of all resolutions on one
    scale; the paper prunes each layer by itself. Units that are read without positions have no map: such a group is
    scored by `fallback`, at mean 1; `fallback=None` makes it an error.

    >>> HRank().fallback.name
    'l2'
    """

    name: ClassVar[str] = "hrank"
    needs: ClassVar[frozenset[str]] = frozenset({"ranks"})
    fallback: Criterion | None = L2()

    def __post_init__(self) -> None:
        check_fallback(self.fallback)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the mean rank per unit, or the fallback's scores, at mean 1; GroupError if there is neither."""
        if context.ranks is not None and group.name not in context.ranks:
            if self.fallback is None:
                raise GroupError(
                    f"Group '{group.name}' is read without positions: its units have no maps, and hrank no score. "
                    "Set fallback=L2() or another criterion, or freeze the group."
                )
            return normalized(self.fallback.score(group, context), "mean")
        return normalized(context.measured("ranks", group), "mean")
