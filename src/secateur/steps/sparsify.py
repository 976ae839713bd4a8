"""The step that sets weights to zero and keeps them there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.calls import make
from secateur.coding import Code, Coding, Mask, attach_, codable, codings_of
from secateur.criteria import collect_gradients, cross_entropy
from secateur.criteria.samples import inputs_of
from secateur.errors import ConfigError, DataError, GroupError
from secateur.layers import Layer, Rows, layers_of
from secateur.planning import Loss
from secateur.sparsity import SCOPES, SCORES, Choice, make_pattern
from secateur.sparsity.choice import count_units
from secateur.sparsity.scopes import Candidates
from secateur.steps.base import STEPS, Context, Done
from secateur.streaming import choose_chain, sums_by_stage
from secateur.surgery import copy_model
from secateur.tensors import Inputs


@STEPS.register("sparsify")
@dataclass(frozen=True, kw_only=True)
class Sparsify:
    """Set weights of linear layers and convolutions to zero, and put masks on them that keep them there.

    Where a weight has a mask already, the mask can only grow, and what is gone counts as part of the sparsity.
    """

    name: ClassVar[str] = "sparsify"
    accepts: ClassVar[frozenset[str]] = frozenset({"masked", "factored", "input-quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset({"masked"})

    sparsity: float | None = None  # fraction of weights that are zero; by default the pattern's own, or 0.5
    pattern: str = "unstructured"  # or "2:4", or "block?rows=4&cols=4"
    score: str = "magnitude"  # magnitude, taylor, wanda or "sparsegpt?damping=0.01"
    scope: str | None = None  # layer, output, global, erk or lamp; by default what the score's paper uses
    ignore: tuple[str, ...] = ()  # fnmatch patterns on fqn, for example "head.*"
    stream: bool | None = None  # block by block, each reading what sparse ones give; by default where there are blocks

    def __post_init__(self) -> None:
        pattern = make_pattern(self.pattern)
        make(SCORES, self.score)
        scope = None if self.scope is None else make(SCOPES, self.scope)
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ConfigError(f"sparsity={self.sparsity} is outside [0, 1). It is the fraction removed: 0.5 halves.")
        if pattern.sparsity is not None and self.sparsity not in (None, pattern.sparsity):
            raise ConfigError(
                f"Pattern {self.pattern} has a sparsity of {pattern.sparsity}, not {self.sparsity}. Leave sparsity out."
            )
        if pattern.sparsity is not None and scope is not None and scope.needs_scores:
            raise ConfigError(
                f"Pattern {self.pattern} gives every layer the same sparsity, so scope={self.scope!r} has no effect."
            )

    @property
    def needs_labels(self) -> bool:
        """True for scores by gradients."""
        return make(SCORES, self.score).needs_gradient

    def run(self, model: nn.Module, context: Context) -> Done:
        """Carry the step out on a copy of the model.

        Raises:
            DataError: the score is measured on data and there is none.
            ConfigError: the score needs labels and there are none; or `stream` is True and there are no blocks.
            GroupError: weights or activations hold NaN or Inf.
        """
        return _Run(self, copy_model(model).eval(), context).done()


def sparsify(
    model: nn.Module,
    data: Iterable[Any] | None = None,
    step: Sparsify | None = None,
    *,
    loss: Loss = cross_entropy,
) -> Done:
    """Return a copy of a model in which masks keep weights at zero, with what was done.

    Args:
        model: any module; it is not changed.
        data: calibration batches: inputs alone, or with labels for `taylor`. `magnitude` takes none.
        step: what to set to zero; see `Sparsify`.
        loss: of (outputs, labels), for `taylor`.

    >>> done = sparsify(nn.Linear(4, 2), step=Sparsify(pattern="2:4"))
    >>> int((done.model.weight == 0).sum()), done.notes
    (4, ('4 of 8 weights are zero (50.0 %)',))
    """
    batches = list(data or ())
    context = Context(dense=model, inputs=lambda n: inputs_of(batches[0]), calibration=lambda: batches, loss=loss)
    return (step or Sparsify()).run(model, context)


@dataclass
class _Run:
    """One step at work on a model that is its own."""

    step: Sparsify
    model: nn.Module
    context: Context
    layers: dict[str, Layer] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    added: dict[str, Mask] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pattern, self.score = make_pattern(self.step.pattern), make(SCORES, self.step.score)
        self.scope = make(SCOPES, self.step.scope or self.score.scope)
        self._find_layers()

    def done(self) -> Done:
        blocks: list[str] = []
        batches: list[Inputs] = []
        if self.score.of_inputs is not None:
            batches = [inputs_of(batch) for batch in self.context.calibration()]
            if not batches:
                raise DataError(f"Score '{self.score.name}' is measured on data, and there is none. Give batches.")
            blocks = choose_chain(self.model, batches[0], stream=self.step.stream)
        kept = self._kept(batches, blocks)
        for layer, seen in self._seen(batches, blocks):
            self._sparsify_(layer, seen, self._choice(layer, kept.get(layer.key, 0)))
        edit = Code.of(self.added) if self.added else None
        facts = {key: self._fact(layer) for key, layer in self.layers.items()}
        return Done(self.model, edit, tuple(self.skipped), self._notes(facts, blocks), {"layers": facts})

    def _find_layers(self) -> None:
        weights, skipped = codable(self.model)
        found, others = layers_of(self.model, weights, self.step.ignore)
        self.skipped += [*skipped, *others]
        for key, layer in found.items():
            reason = self.pattern.misfit(layer.n_inputs)
            if not all(isinstance(part, Mask) for part in _stack(layer)):
                reason = "coded already; masks go on plain weights"
            if reason:
                self.skipped.append((key, reason))
            else:
                self.layers[key] = layer
                if not torch.isfinite(layer.weight).all():
                    raise GroupError(f"'{key}' holds NaN or Inf. Repair these weights before sparsifying.")

    def _kept(self, batches: list[Inputs], blocks: list[str]) -> dict[str, int]:
        """Units that each layer keeps. Where scores are compared, those of the model as it is."""
        if self.pattern.sparsity is not None:
            return {}
        candidates: dict[str, Candidates] = {}
        if self.scope.needs_scores:
            for layer, seen in self._seen(batches, blocks):
                there = self._there(layer)
                scores = self.score.score(layer.matrix(layer.weight), seen).masked_fill(~there, -torch.inf)
                units = self.pattern.units(scores.flatten(0, 1)).flatten().float()
                candidates[layer.key] = Candidates(tuple(layer.weight.shape), len(units), units)
        else:
            for key, layer in self.layers.items():
                n = int(count_units(self.pattern, torch.ones_like(self._there(layer))))
                candidates[key] = Candidates(tuple(layer.weight.shape), n)
        sparsity = 0.5 if self.step.sparsity is None else self.step.sparsity
        return self.scope.kept(candidates, sparsity) if candidates else {}

    def _seen(self, batches: list[Inputs], blocks: list[str]) -> Iterator[tuple[Layer, Tensor | None]]:
        """Each layer with what the score needs of it; the layer may be changed before the next one is asked for."""
        if self.score.of_inputs is not None:
            yield from self._read(self.score.of_inputs, batches, blocks)
        elif self.score.needs_gradient:
            found = collect_gradients(self.model, self.context.calibration(), self.context.label_loss)
            gradients = {key.replace("parametrizations.weight.original", "weight"): g for key, g in found.items()}
            yield from ((layer, layer.matrix(gradients[key])) for key, layer in self.layers.items())
        else:
            yield from ((layer, None) for layer in self.layers.values())

    def _read(self, of: Rows, batches: list[Inputs], blocks: list[str]) -> Iterator[tuple[Layer, Tensor]]:
        unseen = dict(self.layers)
        for layer, seen in sums_by_stage(self.model, batches, blocks, self.layers, of):
            del unseen[layer.key]
            yield layer, seen
        for key in unseen:
            del self.layers[key]
            self.skipped.append((key, "the forward doesn't call its layer"))

    def _there(self, layer: Layer) -> Tensor:
        """(groups, out, in): True where no mask is yet."""
        there = torch.ones_like(layer.weight, dtype=torch.bool)
        for part in _stack(layer):
            assert isinstance(part, Mask)
            there &= part.mask
        return layer.matrix(there)

    def _choice(self, layer: Layer, kept: int) -> Choice:
        return Choice(self.pattern, self._there(layer), kept, per_row=self.scope.per_row)

    def _sparsify_(self, layer: Layer, seen: Tensor | None, choice: Choice) -> None:
        before = layer.matrix(layer.weight)
        after, stays = self.score.sparsify(before, seen, choice)
        if after is not before:
            layer.free.data.copy_(layer.tensor(after))
        if masks := _stack(layer):
            masks[-1].mask = layer.tensor(stays)
        else:
            self.added[layer.key] = Mask(layer.tensor(stays))
            attach_(self.model, layer.key, self.added[layer.key])

    def _fact(self, layer: Layer) -> dict[str, Any]:
        return {"weights": layer.weight.numel(), "zeros": int((layer.weight == 0).sum())}

    def _notes(self, facts: Mapping[str, Mapping[str, int]], blocks: list[str]) -> tuple[str, ...]:
        n, zeros = (sum(fact[name] for fact in facts.values()) for name in ("weights", "zeros"))
        notes = [f"{zeros:,} of {n:,} weights are zero ({zeros / n:.1%})".replace("%", " %") if n else "no weights"]
        if blocks:
            notes.append(f"calibrated block by block: {len(blocks)} blocks, from '{blocks[0]}' to '{blocks[-1]}'")
        return tuple(notes)


def _stack(layer: Layer) -> list[Coding]:
    """The codings of a layer's weight, the first one first."""
    return codings_of(layer.module).get("weight", [])
