"""The step that puts weights on few levels and keeps them there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from secateur.calls import make
from secateur.coding import CODINGS, Code, Mask, attach_, codable, codings_of, value_of
from secateur.criteria.samples import inputs_of
from secateur.errors import ConfigError, DataError
from secateur.layers import Layer, gram, layers_of
from secateur.quantize import (
    CALIBRATIONS,
    GRANULARITIES,
    Binary,
    Granularity,
    PerChannel,
    PerGroup,
    Quantizer,
    Symmetric,
    Ternary,
)
from secateur.quantize.gptq import gptq
from secateur.quantize.uniform import Uniform, check_bits
from secateur.steps.base import STEPS, Context, Done
from secateur.streaming import choose_chain, sums_by_stage
from secateur.surgery import copy_model
from secateur.tensors import modules_of


@STEPS.register("quantize")
@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Put the weights of linear layers, convolutions and embeddings on few levels, and codings that keep them there.

    A `finetune` step afterwards is quantization-aware training: gradients pass straight through, scales learn.
    Biases and norms stay what they are.
    """

    name: ClassVar[str] = "quantize"
    accepts: ClassVar[frozenset[str]] = frozenset({"masked", "factored", "input-quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset({"quantized"})
    needs_labels: ClassVar[bool] = False

    method: str = "symmetric"  # symmetric, affine, ternary or binary
    bits: int = 8  # of symmetric and affine: 2 to 8
    granularity: str = "per_channel"  # or per_tensor (element-wise), or "per_group?group_size=64"
    calibration: str = "mse"  # of the range of symmetric and affine: minmax, percentile, mse or kl
    bits_by: dict[str, int] = field(default_factory=dict)  # fnmatch pattern on fqn → bits of those layers
    ends_bits: int | None = None  # of the first and the last layer, which are symmetric then; None: as the others
    gptq: bool = False  # each column makes up for the error of those before it; needs calibration data
    damping: float = 0.01  # of gptq, as a fraction of the inputs' mean square
    stream: bool | None = None  # gptq block by block, each reading what quantized ones give; by default where it can
    ignore: tuple[str, ...] = ()  # fnmatch patterns on fqn, for example "head.*"

    def __post_init__(self) -> None:
        if not issubclass(CODINGS[self.method], Quantizer):
            raise ConfigError(f"method='{self.method}' is no quantizer.")
        check_bits(self.bits)
        for bits in (*self.bits_by.values(), *([] if self.ends_bits is None else [self.ends_bits])):
            check_bits(bits)
        make(GRANULARITIES, self.granularity)
        make(CALIBRATIONS, self.calibration)
        if not self.damping > 0:
            raise ConfigError(f"damping={self.damping} must be above 0.")

    def run(self, model: nn.Module, context: Context) -> Done:
        """Carry the step out on a copy of the model.

        Raises:
            DataError: gptq is asked for and there is no data.
            ConfigError: weights hold NaN or Inf; or `stream` is True and there are no blocks.
            GroupError: activations hold NaN or Inf.
        """
        return _Run(self, copy_model(model).eval(), context).done()

    def fit(self, weight: Tensor, granularity: Granularity) -> Quantizer:
        """The coding that the settings choose for a weight."""
        kind = CODINGS[self.method]
        if issubclass(kind, Uniform):
            return kind.fit(weight, granularity, self.bits, make(CALIBRATIONS, self.calibration))
        assert issubclass(kind, Binary | Ternary)
        return kind.fit(weight, granularity)


def quantize(model: nn.Module, data: Iterable[Any] | None = None, step: Quantize | None = None) -> Done:
    """Return a copy of a model whose weights are on few levels, with what was done.

    Args:
        model: any module; it is not changed.
        data: calibration batches of inputs, for gptq.
        step: how; see `Quantize`.

    >>> net = nn.Linear(4, 2)
    >>> _ = nn.init.eye_(net.weight)
    >>> done = quantize(net, step=Quantize(bits=2, granularity="per_tensor"))
    >>> done.model.weight.unique().tolist(), done.notes
    ([0.0, 1.0], ('1 weights are on few levels',))
    """
    batches = list(data or ())
    context = Context(dense=model, inputs=lambda n: inputs_of(batches[0]), calibration=lambda: batches)
    return (step or Quantize()).run(model, context)


@dataclass(frozen=True)
class _Target:
    """A weight to quantize."""

    key: str
    axis: int  # of its output channels
    step: Quantize  # with its own method and bits


@dataclass
class _Run:
    """One step at work on a model that is its own."""

    step: Quantize
    model: nn.Module
    context: Context
    weights: dict[str, Tensor] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    added: dict[str, Quantizer] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def done(self) -> Done:
        targets = self._targets()
        if self.step.gptq:
            self._compensate_(targets)
        for target in targets.values():
            if target.key not in self.added:
                self._put_(target, self._fit(target), {})
        edit = Code.of(self.added) if self.added else None
        facts = {key: self.facts[key] for key in targets}
        notes = (f"{len(targets)} weights are on few levels", *self.notes)
        return Done(self.model, edit, tuple(self.skipped), notes, {"layers": facts})

    def _targets(self) -> dict[str, _Target]:
        self.weights, skipped = codable(self.model)
        self.skipped += skipped
        modules, stacks = dict(modules_of(self.model)), codings_of(self.model)
        found: dict[str, _Target] = {}
        for key, weight in self.weights.items():
            fqn, _, name = key.rpartition(".")
            axis, reason = _output_axis(modules[fqn], name), ""
            if any(fnmatch(fqn, pattern) for pattern in self.step.ignore):
                reason = "ignored"
            elif axis is None:
                reason = f"{type(modules[fqn]).__name__.removeprefix('Parametrized')} is no layer with a weight matrix"
            elif not all(isinstance(part, Mask) for part in stacks.get(key, [])):
                reason = "coded already"
            elif stacks.get(key) and self.step.method == "binary":
                reason = "masked, and binary weights have no zero"
            elif not weight.is_floating_point():
                reason = f"its numbers are {weight.dtype}"
            if reason:
                self.skipped.append((key, reason))
            elif axis is not None:
                bits = next((n for pattern, n in self.step.bits_by.items() if fnmatch(fqn, pattern)), self.step.bits)
                found[key] = _Target(key, axis, dataclasses.replace(self.step, bits=bits))
        if self.step.ends_bits is not None and found:
            ends = dataclasses.replace(self.step, method=Symmetric.kind, bits=self.step.ends_bits)
            found |= {key: dataclasses.replace(found[key], step=ends) for key in (next(iter(found)), list(found)[-1])}
        return found

    def _fit(self, target: _Target) -> Quantizer:
        """The coding of a weight; per channel where groups don't fit."""
        weight = self.weights[target.key]
        granularity: Granularity = make(GRANULARITIES, self.step.granularity)
        if isinstance(granularity, PerGroup):
            reason = "its inputs are not its last axes" if target.axis else ""
            try:
                granularity.scale_shape(tuple(weight.shape))
            except ConfigError as error:
                reason = str(error).rstrip(".")
            if reason:
                self.notes.append(f"'{target.key}' has a scale per channel: {reason}")
                granularity = PerChannel()
        if isinstance(granularity, PerChannel):
            granularity = PerChannel(target.axis)
        try:
            return target.step.fit(weight, granularity)
        except ConfigError as error:
            raise ConfigError(f"'{target.key}': {error}") from error

    def _compensate_(self, targets: dict[str, _Target]) -> None:
        """Quantize what hooks see the inputs of, by what it reads."""
        batches = [inputs_of(batch) for batch in self.context.calibration()]
        if not batches:
            raise DataError("gptq is measured on data, and there is none. Give batches, or set gptq=False.")
        layers, others = layers_of(self.model, targets)
        self.notes += [f"'{key}' is rounded to nearest: {reason}" for key, reason in others]
        blocks = choose_chain(self.model, batches[0], stream=self.step.stream)
        for layer, hessian in sums_by_stage(self.model, batches, blocks, layers, gram):
            self._sweep_(targets[layer.key], layer, hessian.double())
        unseen = [key for key in layers if key not in self.added]
        self.notes += [f"'{key}' is rounded to nearest: the forward doesn't call its layer" for key in unseen]

    def _sweep_(self, target: _Target, layer: Layer, hessian: Tensor) -> None:
        weight, coding = layer.weight, self._fit(target)
        nearest = coding(weight).detach()
        kept = weight != 0 if codings_of(layer.module) else None  # zeros of a mask below stay zero
        after = gptq(layer, hessian, coding, target.step.fit, kept=kept, damping=self.step.damping)
        layer.free.data = after  # not written over: `weights` still shows what was there
        errors = {"output_error": after, "output_error_nearest": nearest}
        self._put_(target, coding, {name: _output_error(layer, weight, w, hessian) for name, w in errors.items()})

    def _put_(self, target: _Target, coding: Quantizer, facts: dict[str, float]) -> None:
        attach_(self.model, target.key, coding)
        self.added[target.key] = coding
        before = self.weights[target.key].float()
        lost = value_of(self.model, target.key).float() - before
        error = float(lost.square().sum() / before.square().sum().clamp_min(1e-30))
        self.facts[target.key] = {"kind": coding.kind, **coding.settings(), "error": error, **facts}


def _output_axis(module: nn.Module, name: str) -> int | None:
    """The axis of a weight's output channels; None where it is none that multiplies inputs or is looked up."""
    if name == "in_proj_weight" and isinstance(module, nn.MultiheadAttention):
        return 0
    if name != "weight":
        return None
    if isinstance(module, nn.Linear | nn.Embedding | _ConvNd):
        return int(isinstance(module, _ConvTransposeNd))
    found = layers_of(nn.ModuleDict({"x": module}), ["x.weight"])[0]
    return int(found["x.weight"].is_transposed) if found else None


def _output_error(layer: Layer, before: Tensor, after: Tensor, hessian: Tensor) -> float:
    """sum_n |(W - W') x_n|^2 / sum_n |W x_n|^2."""
    old, lost = (layer.matrix(w).to(hessian.dtype) for w in (before, before - after))
    energy = ((old @ hessian) * old).sum().clamp_min(1e-30)
    return float(((lost @ hessian) * lost).sum() / energy)
