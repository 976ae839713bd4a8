"""KL divergence: how much the predictions change without a unit, measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.criteria.gradients import logits_of
from secateur.criteria.reading import run_along
from secateur.criteria.samples import inputs_of
from secateur.errors import ConfigError
from secateur.forward import plain_forward
from secateur.graph import Graph, trace
from secateur.law import Law, Sampler

if TYPE_CHECKING:
    from secateur.dims.algebra import Leaf
    from secateur.dims.groups import Group
    from secateur.tensors import Inputs


@CRITERIA.register("kl")
@dataclass(frozen=True, kw_only=True)
class KL(Criterion):
    """KL divergence of the predictions with and without a unit: score[c] = mean over x of KL(p(. | x) || p_c(. | x)).

    p_c is what the network computes that lacks unit c: the unit is zeroed wherever an operator sums over it, and where
    an operator normalises across the group, it does so over the units that are left. Exact, with as many forwards per
    batch as there are units in all groups: for small models. `KLFisher` approximates it in one pass. Needs data,
    without labels.
    Source: Luo and Wu, "Neural Network Pruning with Residual-Connections and Limited-Data", CVPR 2020, section 3.

    >>> KL().needs
    frozenset({'divergences'})
    """

    name: ClassVar[str] = "kl"
    needs: ClassVar[frozenset[str]] = frozenset({"divergences"})

    def score(self, group: Group, context: Context) -> Tensor:
        """Return the divergence per unit, in nats."""
        found: Tensor = context.measured("divergences", group)
        return found


def collect_divergences(model: nn.Module, groups: Iterable[Group], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Return the mean KL divergence of the predictions without each unit, from one forward per unit and batch.

    KL = sum over classes of p * (log p - log p_c), summed over the positions of a sample (tokens, pixels), averaged
    over samples. The model is left as it was.

    Args:
        groups: of a trace of this model. They are found again by name in the trace of the first batch.
        batches: inputs, with labels (not looked at) or without.
    Returns:
        by group, (size,) float32, never negative.
    Raises:
        ConfigError: there is no batch.
        CaptureError: the forward fails, or takes another path on some batch.
    """
    names = [group.name for group in groups]
    sums: dict[str, Tensor] = {}
    n_samples = 0
    for batch in batches:
        inputs = inputs_of(batch)
        graph = trace(model, inputs)
        leaves = {group.name: group.leaf for group in graph.groups}
        full = _log_probabilities(model, inputs, graph, {})
        n_samples += len(full)
        for name in names:
            leaf = leaves[name]
            found = torch.zeros(leaf.size, dtype=torch.float64)
            for unit in range(leaf.size):
                kept = torch.cat([torch.arange(unit), torch.arange(unit + 1, leaf.size)])
                found[unit] = kl_divergence(full, _log_probabilities(model, inputs, graph, {leaf: kept}))
            sums[name] = sums[name] + found if name in sums else found
    if not n_samples:
        raise ConfigError("There is no batch to run the model on. Pass batches anew: a generator is read only once.")
    return {name: (total / n_samples).clamp(min=0).float() for name, total in sums.items()}


def _log_probabilities(model: nn.Module, inputs: Inputs, graph: Graph, keep: dict[Leaf, Tensor]) -> Tensor:
    """Return the predictions of a model of which only these units are kept."""
    law = Law(graph, keep, {}, Sampler())
    with plain_forward(model):
        return predictions(run_along(model, inputs, law))


def predictions(outputs: Any) -> Tensor:
    """Return log p of a model's outputs as (samples, positions, classes) float64.

    >>> predictions(torch.zeros(2, 4)).exp().tolist()
    [[[0.25, 0.25, 0.25, 0.25]], [[0.25, 0.25, 0.25, 0.25]]]
    """
    logits = logits_of(outputs)
    scores = logits.movedim(1, -1) if logits.dim() == 4 else logits
    return scores.reshape(len(scores), -1, scores.shape[-1]).double().log_softmax(-1)


def kl_divergence(full: Tensor, other: Tensor) -> float:
    """Return KL = sum over samples, positions and classes of p * (log p - log q), given log p and log q."""
    return float((full.exp() * (full - other)).sum())
