"""The step that takes away units and bits under one size."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from secateur.allocate import Allocation, Budget
from secateur.coding import Code, Mask, attach_, codable, codings_of
from secateur.compensation import CompensateConfig
from secateur.compensation.distance import distance
from secateur.criteria import Elimination
from secateur.criteria.samples import inputs_of
from secateur.edits import Edits
from secateur.edits import Prune as PruneEdit
from secateur.errors import ConfigError, DataError, SecateurError
from secateur.forward import plain_forward
from secateur.graph import Graph
from secateur.mixing import METHOD, Option, Options, Storage, share_out
from secateur.planning import PruneConfig, Scores, plan
from secateur.plans import Plan
from secateur.quantize import Quantizer
from secateur.quantize.uniform import check_bits
from secateur.steps.base import STEPS, Context, Done
from secateur.steps.prune import cut, solve_again_
from secateur.steps.quantize import Quantize
from secateur.surgery import copy_model
from secateur.tensors import Inputs, on_device, tensors_in

WORST = 1e6
"""The loss where outputs are NaN or Inf."""


@STEPS.register("mix")
@dataclass(frozen=True, kw_only=True)
class Mix:
    """Remove units and quantize each layer to its own number of bits, both within one size: quantization pruning.

    A unit (channel, head, feature) of 0 bits is really removed. A whole layer of 0 bits, where its widths must stay, is
    zero. The size is that of a file in which every weight of the given model has `bits`; scales, biases and norms
    count, so that what goes with a unit pays for bits elsewhere.

    What is lost is measured on the network's outputs: by a layer that alone is quantized, for each number of bits; by a
    group that alone is narrowed, the weights that read it solved for again (see `error_curves`). Losses are taken to
    add up. `share_out` chooses widths and bits together; the network is cut and solved for; then its bits are measured
    and chosen once more.
    """

    name: ClassVar[str] = "mix"
    accepts: ClassVar[frozenset[str]] = frozenset({"masked", "factored", "input-quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset({"masked", "quantized"})
    needs_labels: ClassVar[bool] = False

    bits: float = 4.0  # of the file, per weight that the model has before
    options: tuple[int, ...] = (0, 2, 3, 4, 5, 6, 8)  # bits that a layer may have; at 0 it is zero
    has_units: bool = True  # units may go; False leaves all widths, and chooses bits alone
    distance: Literal["mse", "kl"] = "mse"  # of outputs; kl for logits along the last axis
    method: str = "symmetric"  # or affine
    granularity: str = "per_channel"  # or per_tensor, or "per_group?group_size=64"
    calibration: str = "mse"  # of ranges: minmax, percentile, mse or kl
    gptq: bool = False  # see the step `quantize`
    compensate: CompensateConfig | None = field(default_factory=CompensateConfig)  # of the weights that units leave
    ignore: tuple[str, ...] = ()  # fnmatch patterns on fqn, for example "head.*"

    def __post_init__(self) -> None:
        if self.method not in ("symmetric", "affine"):
            raise ConfigError(f"method='{self.method}' has one number of bits. Choose symmetric or affine.")
        for bits in self.options:
            if bits != 0:
                check_bits(bits)
        if list(self.options) != sorted(set(self.options)) or len(self.options) < 2:
            raise ConfigError(f"options={self.options} must be at least two numbers, in rising order.")
        if not 0 < self.bits <= self.options[-1] or (self.bits < self.options[0] and not self.has_units):
            raise ConfigError(f"bits={self.bits} can't be the average of {self.options}.")
        Elimination(distance=self.distance)
        self.with_bits({})

    def with_bits(self, bits_by: Mapping[str, int], removed: Sequence[str] = ()) -> Quantize:
        """The step that quantizes layers to these bits, by fqn; the others get most."""
        return Quantize(
            method=self.method,
            bits=self.options[-1],
            bits_by=dict(bits_by),
            granularity=self.granularity,
            calibration=self.calibration,
            gptq=self.gptq,
            ignore=(*self.ignore, *removed),
        )

    def run(self, model: nn.Module, context: Context) -> Done:
        """Carry the step out on a copy of the model.

        Raises:
            DataError: there is no calibration data.
            VerifyError: the model without the units does not compute what its plan says.
        """
        batches = [inputs_of(batch) for batch in context.calibration()]
        if not batches:
            raise DataError("What is lost is measured on data, and there is none. Give calibration batches.")
        options = self._measure(model, batches, context)
        whole = Storage(model, options)
        limit = whole.n_bytes({}) - int(whole.n_weights * (self.options[-1] - self.bits) / 8)
        pruned = self._prune(model, options, limit, context) if self.has_units else Done(model)
        if pruned.edit is not None:
            options = self._measure(pruned.model, batches, context)
        chosen, found = share_out(options, Storage(pruned.model, options), limit)
        coded = self._quantize(pruned.model, {key: option.bits for key, option in chosen.items()}, context)
        layers = {
            key: {"bits": chosen[key].bits, "losses": {option.bits: option.loss for option in given}}
            for key, given in options.items()
        }
        return Done(
            coded.model,
            Edits(tuple(edit for edit in (pruned.edit, coded.edit) if isinstance(edit, PruneEdit | Code))),
            (*pruned.skipped, *coded.skipped),
            (*pruned.notes, *found.notes, *coded.notes),
            {**pruned.facts, "layers": layers},
        )

    def _prune(self, model: nn.Module, options: Options, limit: int, context: Context) -> Done:
        """A copy without the units that have no bits; the model itself, with the reason, where all stay."""

        def share(graph: Graph, scores: Scores) -> Allocation:
            found = share_out(options, Storage(model, options, graph), limit, scores)[1]
            return dataclasses.replace(found, notes=())  # bits are chosen again, and have the last word

        criterion = Elimination(distance=self.distance, seed=context.seed)
        config = PruneConfig(criterion=criterion, method=METHOD, ignore=self.ignore)
        budget, data = Budget(size_bytes=limit), context.calibration()
        try:
            made = plan(model, context.example, budget, config, data=data, allocator=share)
        except SecateurError as error:  # bits alone can still meet the budget
            return Done(model, notes=(f"no unit is removed: {error}",))
        if made.is_empty:
            return Done(model, skipped=made.skipped, notes=("no unit is removed: fewer bits lose less", *made.notes))
        small, proof = cut(model, made, context)
        notes = [_removed(made), *made.notes]
        if self.compensate is not None:
            notes.append(solve_again_(model, small, made, context, self.compensate))
        facts = {"verify": str(proof), "max_difference": proof.max_difference}
        return Done(small, PruneEdit(made), made.skipped, tuple(notes), facts)

    def _measure(self, model: nn.Module, batches: Sequence[Inputs], context: Context) -> dict[str, list[Option]]:
        """By weight: what the outputs lose when it alone has so many bits."""
        work = copy_model(model).eval()
        expected = _outputs(work, batches)
        found: dict[str, list[Option]] = {}
        for bits in self.options:
            rounded = dataclasses.replace(self.with_bits({}), bits=bits or self.options[-1], gptq=False)
            done = rounded.run(model, context)
            weights, stacks = codable(done.model)[0], codings_of(done.model)
            for key in done.facts["layers"]:
                with _instead(work, key, weights[key] * bool(bits)):
                    lost = float(distance(self.distance, expected, _outputs(work, batches)))
                coding = stacks[key][-1]
                assert isinstance(coding, Quantizer)
                loss = max(lost, 0.0) if lost < WORST else WORST
                found.setdefault(key, []).append(Option(bits, coding if bits else None, loss))
        return found

    def _quantize(self, model: nn.Module, bits: Mapping[str, int], context: Context) -> Done:
        """A copy with these bits, by weight; masks keep those of 0 bits at zero."""
        small = copy_model(model)
        weights = codable(small)[0]
        masks = {key: Mask(torch.zeros_like(weights[key], dtype=torch.bool)) for key, n in bits.items() if not n}
        for key, mask in masks.items():
            attach_(small, key, mask)
        by_fqn = {key.rpartition(".")[0]: n for key, n in bits.items() if n}
        done = self.with_bits(by_fqn, [key.rpartition(".")[0] for key in masks]).run(small, context)
        coded = done.edit.weights if isinstance(done.edit, Code) else {}
        skipped = tuple((key, reason) for key, reason in done.skipped if key not in masks)
        notes = (*done.notes, *(f"'{key}' has no bits: it is zero" for key in masks))
        return Done(done.model, Code({**Code.of(masks).weights, **coded}), skipped, notes, done.facts)


def _removed(made: Plan) -> str:
    kept, size = sum(len(g.keep) for g in made.groups), sum(g.size for g in made.groups)
    return f"{size - kept} of {size} units have no bits: they are removed"


def _outputs(model: nn.Module, batches: Sequence[Inputs]) -> Tensor:
    """The first tensor of numbers that each forward gives, (rows, last axis) float64, one after another."""
    found = []
    with torch.no_grad(), plain_forward(model):
        for batch in batches:
            args, kwargs = on_device(model, batch)
            t = next((t for t in tensors_in(model(*args, **kwargs)) if t.is_floating_point()), None)
            if t is None:
                raise DataError(f"{type(model).__name__} gives no tensor of numbers, so its losses can't be measured.")
            found.append(t.double().reshape(-1, t.shape[-1] if t.ndim else 1))
    return torch.cat(found)


@contextmanager
def _instead(model: nn.Module, key: str, value: Tensor) -> Iterator[None]:
    """Give a weight another value inside; what masks keep at zero is zero in it too."""
    fqn, _, name = key.rpartition(".")
    module = model.get_submodule(fqn)
    free: Any = module
    if name not in module._parameters:
        free, name = getattr(module.parametrizations, name), "original"
    held = getattr(free, name)
    before, held.data = held.data, value
    try:
        yield
    finally:
        held.data = before
