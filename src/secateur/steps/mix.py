"""The step that gives each layer its own number of bits, none at all where the network can do without the layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.allocate import Budget, Cost, ErrorCurve, Lagrangian, Space, allocate
from secateur.coding import Code, Mask, attach_, codable
from secateur.criteria.samples import inputs_of
from secateur.errors import ConfigError, DataError
from secateur.forward import plain_forward
from secateur.quantize.uniform import check_bits
from secateur.steps.base import STEPS, Context, Done
from secateur.steps.quantize import Quantize
from secateur.surgery import copy_model
from secateur.tensors import Inputs, on_device, tensors_in

WORST = 1e6
"""The loss where outputs are NaN or Inf."""


@STEPS.register("mix")
@dataclass(frozen=True, kw_only=True)
class Mix:
    """Quantize layers to different numbers of bits: those that lose least by few bits get few, within one average.

    A layer of 0 bits is removed: a mask keeps its weight at zero. What a layer loses at each number of bits is
    measured: the relative squared change of the network's outputs when that layer alone is quantized. Losses of
    several layers are taken to add up, and bits are dealt out by one exchange rate between loss and size (see
    `Lagrangian`).

    Source: Shoham and Gersho, "Efficient Bit Allocation for an Arbitrary Set of Quantizers", IEEE Trans. ASSP 1988.
    """

    name: ClassVar[str] = "mix"
    accepts: ClassVar[frozenset[str]] = frozenset({"masked", "factored", "input-quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset({"masked", "quantized"})
    needs_labels: ClassVar[bool] = False

    bits: float = 4.0  # per weight, on average over the layers that are quantized
    options: tuple[int, ...] = (0, 2, 3, 4, 5, 6, 8)  # bits that a layer may have; 0 removes it
    method: str = "symmetric"  # or affine
    granularity: str = "per_channel"  # or per_tensor, or "per_group?group_size=64"
    calibration: str = "mse"  # of ranges: minmax, percentile, mse or kl
    gptq: bool = False  # see the step `quantize`
    ignore: tuple[str, ...] = ()  # fnmatch patterns on fqn, for example "head.*"

    def __post_init__(self) -> None:
        if self.method not in ("symmetric", "affine"):
            raise ConfigError(f"method='{self.method}' has one number of bits. Choose symmetric or affine.")
        for bits in self.options:
            if bits != 0:
                check_bits(bits)
        if list(self.options) != sorted(set(self.options)) or len(self.options) < 2:
            raise ConfigError(f"options={self.options} must be at least two numbers, in rising order.")
        if not max(self.options[0], 0.01) <= self.bits <= self.options[-1]:
            raise ConfigError(f"bits={self.bits} can't be the average of {self.options}.")
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
        """
        batches = [inputs_of(batch) for batch in context.calibration()]
        if not batches:
            raise DataError("What a layer loses is measured on data, and there is none. Give calibration batches.")
        curves = self._measure(model, batches, context)
        chosen = choose_bits(curves, {key: w.numel() for key, w in codable(model)[0].items()}, self.options, self.bits)
        masked = copy_model(model)
        masks = {key: Mask(torch.zeros_like(codable(masked)[0][key]) > 0) for key, bits in chosen.items() if not bits}
        for key, mask in masks.items():
            attach_(masked, key, mask)
        by_fqn = {key.rpartition(".")[0]: bits for key, bits in chosen.items()}
        removed = [fqn for fqn, bits in by_fqn.items() if not bits]
        done = self.with_bits({fqn: bits for fqn, bits in by_fqn.items() if bits}, removed).run(masked, context)
        coded = done.edit.weights if isinstance(done.edit, Code) else {}
        edit = Code({**Code.of(masks).weights, **coded})
        facts = {key: {"bits": bits, "losses": curves[key]} for key, bits in chosen.items()}
        skipped = tuple((key, reason) for key, reason in done.skipped if key not in masks)
        notes = (*done.notes, *(f"'{key}' has no bits: it is zero" for key in masks))
        return Done(done.model, edit, skipped, notes, {"layers": facts})

    def _measure(self, model: nn.Module, batches: Sequence[Inputs], context: Context) -> dict[str, dict[int, float]]:
        """By weight: the relative squared change of the outputs at each number of bits."""
        work = copy_model(model).eval()
        expected = _outputs(work, batches)
        energy = max(sum(float(t.double().square().sum()) for t in expected), 1e-30)
        curves: dict[str, dict[int, float]] = {}
        for bits in self.options:
            rounded = dataclasses.replace(self.with_bits({}), bits=bits or self.options[-1], gptq=False)
            done = rounded.run(model, context)
            weights = codable(done.model)[0]
            for key in done.facts["layers"]:
                with _instead(work, key, weights[key] * bool(bits)):
                    found = _outputs(work, batches)
                lost = sum(float((a - b).double().square().sum()) for a, b in zip(expected, found, strict=True))
                curves.setdefault(key, {})[bits] = lost / energy if lost < WORST * energy else WORST
        return curves


def choose_bits(
    curves: Mapping[str, Mapping[int, float]], sizes: Mapping[str, int], options: Sequence[int], bits: float
) -> dict[str, int]:
    """Return the bits of each layer, at most `bits` per weight on average, so that the losses add up to little.

    Args:
        curves: by layer, what it loses at each of the options.
        sizes: weights of each layer.

    >>> curves = {"a": {2: 9.0, 8: 0.0}, "b": {2: 0.1, 8: 0.0}}
    >>> choose_bits(curves, {"a": 100, "b": 100}, (2, 8), 5)
    {'a': 8, 'b': 2}
    """
    if not curves:
        return {}
    top = options[-1]
    levels = torch.arange(len(options))  # a width of k stands for options[k - 1]; none has width 0
    scores: dict[str, Tensor | ErrorCurve] = {}
    for key, curve in curves.items():
        errors = torch.tensor([curve[options[0]], *(curve[n] for n in options)], dtype=torch.float64)
        scores[key] = ErrorCurve(errors - curve[top], levels)

    def cost(counts: Mapping[str, int]) -> Cost:
        return Cost(sum(sizes[key] * options[counts.get(key, len(options)) - 1] for key in curves), 0)

    space = Space(dict.fromkeys(curves, len(options)), cost)
    found = allocate(scores, space, Budget(params=bits / top), Lagrangian(floor=1 / len(options)))
    return {key: options[len(found.keep[key]) - 1] for key in curves}


def _outputs(model: nn.Module, batches: Sequence[Inputs]) -> list[Tensor]:
    found: list[Tensor] = []
    with torch.no_grad(), plain_forward(model):
        for batch in batches:
            args, kwargs = on_device(model, batch)
            found += [t for t in tensors_in(model(*args, **kwargs)) if t.is_floating_point()]
    return found


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
