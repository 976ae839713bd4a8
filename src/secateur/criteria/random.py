"""Random scores: the baseline that every other criterion has to beat."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from secateur.criteria.base import CRITERIA, Context, Criterion
from secateur.errors import ConfigError

if TYPE_CHECKING:
    from secateur.dims.groups import Group


@CRITERIA.register("random")
@dataclass(frozen=True, kw_only=True)
class Random(Criterion):
    """Uniform numbers: score[c] ~ U[0, 1), one stream per group.

    A group's stream is seeded by the generator's state and the group's name, so its scores do not depend on which other
    groups are scored, or in which order; the generator itself is not advanced. Scores are on the CPU.

    >>> Random()
    Random()
    """

    name: ClassVar[str] = "random"

    def score(self, group: Group, context: Context) -> Tensor:
        """Return (size,) float32 in [0, 1); ConfigError without a generator in the context."""
        if context.generator is None:
            raise ConfigError(
                f"Random scores for group '{group.name}' take a generator. "
                "Pass Context(tensors, generator=torch.Generator().manual_seed(0))."
            )
        return torch.rand(group.size, generator=named_generator(context.generator, group.name), dtype=torch.float32)


def named_generator(generator: torch.Generator, name: str) -> torch.Generator:
    """Return a fresh CPU generator that is a function of `generator`'s state and `name`.

    >>> source = torch.Generator().manual_seed(0)
    >>> a, b = named_generator(source, "a"), named_generator(source, "b")
    >>> a.initial_seed() == named_generator(source, "a").initial_seed() != b.initial_seed()
    True
    """
    digest = hashlib.sha256(generator.get_state().numpy().tobytes() + name.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)  # 63 bits: never negative
