"""The step that removes blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from typing import ClassVar

import torch
from torch import Tensor, nn

from secateur.depth.blocks import Block, find_blocks
from secateur.depth.choosing import CHOICES, Data
from secateur.depth.counted import count
from secateur.depth.edit import Removal
from secateur.errors import ConfigError, PlanError
from secateur.forward import plain_forward
from secateur.frameworks.huggingface_model import without_cache
from secateur.steps.base import FORMS, STEPS, Context, Done
from secateur.surgery import copy_model
from secateur.tensors import Inputs, on_device, tensors_in


@STEPS.register("drop")
@dataclass(frozen=True, kw_only=True)
class Drop:
    """Fewer layers: blocks of lists of modules, which give what they take, are removed.

    Where the config of a Transformers model counts the blocks of a list, they leave it and the config follows, so that
    the model saves and loads as any other. Elsewhere a block becomes an identity. Both compute the same.

    Args:
        n: how many blocks go; None removes all that `only` matches, without looking at `by`.
        by: which: "first", "last", "angular", "kl" or "loss" (see `secateur.depth.CHOICES`).
        only, ignore: fnmatch patterns on fqn: what may be removed, and what of that may not.
    Raises:
        ConfigError: n is not positive, or neither n nor `only` says what to remove.
        RegistryError: an unknown choice.

    >>> Drop(n=2, by="last").only
    ('*',)
    """

    name: ClassVar[str] = "drop"
    accepts: ClassVar[frozenset[str]] = frozenset(FORMS) - {"shared"}  # a codebook may be lent from there
    leaves: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = False

    n: int | None = None
    by: str = "angular"
    only: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.n is not None and self.n < 1:
            raise ConfigError(f"n={self.n} blocks can't be removed. Give 1 or more.")
        if self.n is None and self.only == ("*",):
            raise ConfigError("Say how many blocks go (n=4), or which (only=('model.layers.2*',)).")
        CHOICES[self.by]  # an unknown name is an error

    def run(self, model: nn.Module, context: Context) -> Done:
        """Choose blocks and remove them from a copy.

        Raises:
            ConfigError: there are not so many blocks; the reasons of those that can't be removed are listed.
            PlanError: the model can't run without them.
        """
        blocks, skipped = find_blocks(model, context.example)
        allowed = [b for b in blocks if _matches(b.fqn, self.only) and not _matches(b.fqn, self.ignore)]
        skipped += [(b.fqn, "protected by `only` or `ignore`") for b in blocks if b not in allowed]
        if len(allowed) < (self.n or 1) or len(allowed) == len(blocks) == self.n:
            shown = "; ".join(f"'{fqn}': {reason}" for fqn, reason in skipped[:8])
            raise ConfigError(
                f"{len(allowed)} blocks of {type(model).__name__} can be removed, not {self.n or 'any'} and one left."
                f" {shown or 'No list of modules was found'}."
            )
        working = copy_model(model).eval()
        chosen, scores = tuple(allowed), {}
        if self.n is not None:
            data = Data(context.calibration, context.label_loss)
            choice = CHOICES[self.by](working, allowed, self.n, data)
            chosen, scores = choice.blocks, choice.scores
        edit, notes = remove(working, chosen, context.example)
        facts = {"blocks": [block.fqn for block in chosen], "scores": scores}
        return Done(edit.replay(model).eval(), edit, tuple(skipped), notes, facts)


def remove(model: nn.Module, blocks: Sequence[Block], example: Inputs) -> tuple[Removal, tuple[str, ...]]:
    """The edit that removes blocks: from lists that a config counts, by identities elsewhere, with notes on why not.

    Raises:
        PlanError: the model can't run without them.
    """
    edit, notes = Removal(), []
    for holder in dict.fromkeys(block.holder for block in blocks):
        gone = sorted((block for block in blocks if block.holder == holder), key=lambda block: block.index)
        plain = replace(edit, identities={**edit.identities, **{b.fqn: b.n_outputs for b in gone}})
        expected = _outputs(plain.replay(model), example)
        found = count(model, edit, holder, tuple(block.index for block in gone))
        reason = found if isinstance(found, str) else "the others compute something else in their new places"
        if isinstance(found, Removal) and _same(expected, _outputs(found.replay(model), example)):
            edit = found
        else:
            edit = plain
            notes.append(f"blocks of '{holder}' became identities: {reason}")
    return edit, tuple(notes)


def _outputs(model: nn.Module, example: Inputs) -> list[Tensor]:
    args, kwargs = on_device(without_cache(model), example)
    try:
        with plain_forward(model):
            return tensors_in(model(*args, **kwargs))
    except (AttributeError, TypeError, RuntimeError, IndexError) as error:
        raise PlanError(f"{type(model).__name__} can't run without these blocks: {error} Remove others.") from error


def _same(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    """Up to the rounding of other memory layouts."""
    return [t.shape for t in a] == [t.shape for t in b] and all(
        torch.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True) for x, y in zip(a, b, strict=True)
    )


def _matches(fqn: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(fqn, pattern) for pattern in patterns)
