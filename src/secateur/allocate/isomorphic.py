"""Ranking only what is alike: one threshold per kind of group, and the same fraction of every kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.allocate.blocks import Block
from secateur.allocate.methods import ALLOCATIONS, Global, SteppingMethod
from secateur.allocate.steps import step_units

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@ALLOCATIONS.register("isomorphic")
@dataclass(frozen=True, kw_only=True)
class Isomorphic(SteppingMethod):
    """Each kind of group keeps the same fraction of its units; within a kind one threshold decides, as in `Global`.

    A step is due at the fraction of its kind's units that are kept once it and all better steps of its kind are taken:
    price = (kept before + kept after) / (2 * units of the kind). Kinds are those of the space: groups of one topology
    (see `topology`); blocks of tied groups are of one kind if all their groups are.
    Source: Fang et al., "Isomorphic Pruning for Vision Models", ECCV 2024, section 3.
    Differs: the paper compares subgraphs of operators; this compares what roles a group has in which weights.

    >>> Isomorphic()
    Isomorphic(floor=0.1, round_to=1)
    """

    name: ClassVar[str] = "isomorphic"

    def prices(self, blocks: Sequence[Block], gains: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the fraction of its kind at which each step is due."""
        scores = Global().prices(blocks, gains)
        found = [torch.empty_like(of_block) for of_block in scores]
        for kind in dict.fromkeys(block.kind for block in blocks):
            alike = [i for i, block in enumerate(blocks) if block.kind == kind]
            n_total = sum(sum(blocks[i].sizes) for i in alike)
            added = torch.cat([step_units(blocks[i]) for i in alike])
            order = torch.sort(torch.cat([scores[i] for i in alike]), stable=True).indices
            after = n_total - added.sum() + added[order].cumsum(0)
            due = torch.empty(len(added), dtype=torch.float64)
            due[order] = (after - added[order] / 2).double() / n_total
            for i, part in zip(alike, torch.split(due, [len(scores[i]) for i in alike]), strict=True):
                found[i] = part
        return found


def topology(group: Group) -> str:
    """Say how a group is built, without sizes: its kind and how often it has which role on which axis.

    >>> from secateur.dims.groups import Group, Member
    >>> members = (Member("a.weight", 0, "producer"), Member("a.bias", 0, "bias"), Member("b.weight", 1, "reader"))
    >>> topology(Group("a features", "features", 8, members))
    'features: 1 bias 0, 1 producer 0, 1 reader 1'
    """
    places = Counter(f"{m.role} {m.axis}" + " of a grid" * bool(m.loops) for m in group.members)
    return f"{group.kind}: " + ", ".join(f"{n} {place}" for place, n in sorted(places.items()))
