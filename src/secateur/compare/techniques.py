"""What is done to a network in a cell: from a budget to steps, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from secateur.allocate import Budget, Lagrangian
from secateur.compensation.config import CompensateConfig
from secateur.criteria import Elimination
from secateur.depth.blocks import find_blocks
from secateur.errors import ConfigError
from secateur.planning import PruneConfig
from secateur.registry import Registry
from secateur.steps import Drop, Factorize, Mix, Prune, Quantize, Sparsify, Step, Words
from secateur.tensors import Inputs

DENSE, RANDOM, SCRATCH = "none", "random", "scratch"
"""The baselines among the prunings."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a pruning is asked for: the fraction to keep of this network."""

    budget: float
    cost: str  # what is counted: of COUNTED
    model: nn.Module
    example: Inputs
    seed: int


COUNTED = ("macs", "params")
"""What budgets of widths and ranks may count."""

Pruning = Callable[[Target], tuple[Step, ...]]
PRUNINGS: Registry[str, Pruning] = Registry("pruning")
QUANTIZATIONS: Registry[str, tuple[Step, ...]] = Registry("quantization")

QUANTIZATIONS["none"] = ()
QUANTIZATIONS["binary"] = (Quantize(method="binary"),)
QUANTIZATIONS["int8_per_tensor"] = (Quantize(granularity="per_tensor"),)
QUANTIZATIONS["int8_per_channel"] = (Quantize(),)
QUANTIZATIONS["int4_per_group"] = (Quantize(bits=4, granularity="per_group?group_size=32"),)


def check_zeros(pruning: Sequence[Step], quantization: Sequence[Step]) -> None:
    """Refuse masks under binary weights: the step would quantize what has no mask, and leave the rest alone.

    Raises:
        ConfigError: they meet.
    """
    is_binary = any(isinstance(step, Quantize) and step.method == "binary" for step in quantization)
    if is_binary and any("masked" in step.leaves for step in pruning):
        raise ConfigError("Binary weights have no zero, and the pruning before keeps weights at zero.")


@PRUNINGS.register(DENSE)
@PRUNINGS.register(SCRATCH)
def leave(target: Target) -> tuple[Step, ...]:
    """The network as it was trained: the dense one, or a narrower one of budget * its cost."""
    return ()


def by_criterion(criterion: str) -> Pruning:
    """Narrower widths by a criterion, to budget * cost."""

    def steps(target: Target) -> tuple[Step, ...]:
        config = PruneConfig(criterion=criterion, seed=target.seed)
        return (Prune(budget=Budget(**{target.cost: target.budget}), prune=config),)

    return steps


for _name in (RANDOM, "l2", "taylor", "kl"):
    PRUNINGS[_name] = by_criterion(_name)


@PRUNINGS.register("structured_obs")
def eliminate(target: Target) -> tuple[Step, ...]:
    """Narrower widths by structured optimal brain surgeon, and the weights left solved for again; budget * cost."""
    config = PruneConfig(criterion=Elimination(), method=Lagrangian(), seed=target.seed)
    return (Prune(budget=Budget(**{target.cost: target.budget}), prune=config, compensate=CompensateConfig()),)


@PRUNINGS.register("low_rank")
def factorize(target: Target) -> tuple[Step, ...]:
    """Layers as products of thinner ones, of budget * cost in all."""
    kept = target.budget
    return (Factorize(macs=kept) if target.cost == "macs" else Factorize(params=kept),)


@PRUNINGS.register("quantization_pruning")
def mix(target: Target) -> tuple[Step, ...]:
    """Units removed and each layer its own number of bits, within the size of budget * 8 bits per weight."""
    return (Mix(bits=8 * target.budget),)


@PRUNINGS.register("unstructured")
def sparsify(target: Target) -> tuple[Step, ...]:
    """The budget's part of the weights, those largest in magnitude; the rest is zero."""
    return (Sparsify(sparsity=1 - target.budget),)


@PRUNINGS.register("vocabulary")
def read_less(target: Target) -> tuple[Step, ...]:
    """The budget's part of the words, those that predictions need most by their KL divergence."""
    return (Words(kept=target.budget, seed=target.seed),)


@PRUNINGS.register("depth")
def drop(target: Target) -> tuple[Step, ...]:
    """The budget's part of the blocks of lists of modules, rounded; at least one goes and one stays.

    Raises:
        ConfigError: there are fewer than two blocks that could go.
    """
    blocks, _ = find_blocks(target.model, target.example)
    if len(blocks) < 2:
        raise ConfigError(
            f"{type(target.model).__name__} has {len(blocks)} blocks that it could do without; depth needs two."
        )
    n = min(max(1, round((1 - target.budget) * len(blocks))), len(blocks) - 1)
    return (Drop(n=n),)
