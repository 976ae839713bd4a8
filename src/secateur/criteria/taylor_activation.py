"""Taylor on activations: how much the loss of a sample would change, to first order, without a unit's activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.options import NORMALIZERS, Normalize, check_choice, normalized

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("taylor_activation")
@dataclass(frozen=True, kw_only=True)
class TaylorActivation(Criterion):
    """Activation times gradient: score[c] = mean over samples n of |sum over positions of a[n, c] * dL_n / da[n, c]|.

    The sum is `gamma[n, c]` of `secateur.criteria.gates`. Needs labelled data.
    Source: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017,
    section 2.2.
    Differs: the paper averages over positions, this sums, which is what the loss changes by; it divides by the norm of
    each layer's scores, which this does not (the loss is one scale for all groups; `normalize` can do it by the mean).

    >>> TaylorActivation().normalize
    'none'
    """

    name: ClassVar[str] = "taylor_activation"
    needs: ClassVar[frozenset[str]] = frozenset({"gates"})
    normalize: Normalize = "none"

    def __post_init__(self) -> None:
        check_choice("normalize", self.normalize, NORMALIZERS)

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the mean absolute change of the loss per unit; GroupError if nothing reads the group."""
        return normalized(context.measured("gates", group).abs().mean(0), self.normalize)
