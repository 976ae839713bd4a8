"""KL divergence through its second order: the Fisher information of a unit under the model's own predictions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.fisher import fisher_scores

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("kl_fisher")
@dataclass(frozen=True, kw_only=True)
class KLFisher(Criterion):
    """Second order of the KL divergence: score[c] = 1/2 * mean over samples n of gamma[n, c]^2, with labels from p.

    KL(p || p without c) = 1/2 * F_cc + third order, where F_cc is the Fisher information of a gate on unit c (see
    `secateur.criteria.gates`), an expectation over the model's own predictions p. It is estimated from one label drawn
    per sample (per token of a language model); each sample's square is unbiased, so more samples are better than more
    draws. Needs data, without labels.
    Source: Kullback, "Information Theory and Statistics", 1959, chapter 2, section 6, for the second order.

    >>> KLFisher().needs
    frozenset({'model_gates'})
    """

    name: ClassVar[str] = "kl_fisher"
    needs: ClassVar[frozenset[str]] = frozenset({"model_gates"})

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the divergence per unit, to second order, in nats; GroupError if nothing reads the group."""
        return fisher_scores(context.measured("model_gates", group))
