"""The step that puts what layers read on few levels, and its edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from secateur.calls import make
from secateur.criteria.samples import inputs_of
from secateur.edits import EDITS
from secateur.errors import ConfigError, DataError
from secateur.files.decode import decode
from secateur.quantize import CALIBRATIONS, MinMax
from secateur.quantize.inputs import CHILD, InputLevels, attach_inputs_, input_axes
from secateur.steps.base import FORMS, STEPS, Context, Done
from secateur.surgery import copy_model
from secateur.tensors import modules_of
from secateur.watching import watch

_N_VALUES = 2**14
"""Values of one layer's input in one batch that a range is chosen by; `minmax` looks at all."""


@EDITS.register("quantize_inputs")
@dataclass(frozen=True)
class QuantizedInputs:
    """How the inputs of layers are quantized, by fqn."""

    kind: ClassVar[str] = "quantize_inputs"
    layers: dict[str, InputLevels]

    def replay(self, model: nn.Module) -> nn.Module:
        """Put quantizers in front of layers of a copy; the scales of static ones are 1."""
        made = copy_model(model)
        modules = dict(modules_of(made))
        for fqn, levels in self.layers.items():
            attach_inputs_(made, fqn, levels.module(modules.get(fqn, made)))
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {"layers": {fqn: asdict(levels) for fqn, levels in self.layers.items()}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        items = dict(data["layers"]).items()
        return cls({str(fqn): decode(InputLevels, settings, f"layers[{fqn!r}]") for fqn, settings in items})


@STEPS.register("quantize_inputs")
@dataclass(frozen=True, kw_only=True)
class QuantizeInputs:
    """Put what linear layers and convolutions read on few levels, by ranges seen before (static) or at hand (dynamic).

    Together with `quantize` it simulates a kernel of whole numbers. Fine-tuning afterwards is quantization-aware:
    gradients pass straight through, and static scales learn. Layers whose weights other code reads by itself, such as
    the output projection of `nn.MultiheadAttention`, have no call to put this before, and are skipped.
    """

    name: ClassVar[str] = "quantize_inputs"
    accepts: ClassVar[frozenset[str]] = frozenset(FORMS)
    leaves: ClassVar[frozenset[str]] = frozenset({"input-quantized"})
    needs_labels: ClassVar[bool] = False

    method: str = "affine"  # or symmetric
    bits: int = 8  # 2 to 8
    per: str = "static"  # range: static (from calibration data), or dynamic: of each batch, or of each token
    calibration: str = "minmax"  # of static ranges: minmax, percentile, mse or kl
    ignore: tuple[str, ...] = ()  # fnmatch patterns on fqn, for example "head.*"

    def __post_init__(self) -> None:
        self._levels()
        make(CALIBRATIONS, self.calibration)

    def run(self, model: nn.Module, context: Context) -> Done:
        """Carry the step out on a copy of the model.

        Raises:
            ConfigError: the model has no such layers, or they read NaN or Inf.
            DataError: ranges are static and there is no data.
        """
        made, levels = copy_model(model).eval(), self._levels()
        layers, skipped = self._chosen(made)
        batches = [inputs_of(b) for b in context.calibration()] if self.per == "static" else [context.example]
        if not batches:
            raise DataError("Static ranges are measured on data, and there is none. Give batches, or per='batch'.")
        values = self._values(made, layers, batches, context.seed)
        skipped += [(fqn, "the forward doesn't call it with numbers") for fqn in layers if fqn not in values]
        if not values:
            raise ConfigError(f"{type(model).__name__} has no layers to quantize the inputs of: {dict(skipped)}.")
        calibration = make(CALIBRATIONS, self.calibration)
        for fqn, seen in values.items():
            try:
                attach_inputs_(made, fqn, levels.module(layers[fqn], seen, calibration))
            except ConfigError as error:
                raise ConfigError(f"'{fqn}': {error}") from error
        facts = {fqn: {**asdict(levels), "low": float(x.min()), "high": float(x.max())} for fqn, x in values.items()}
        notes = (f"the inputs of {len(values)} layers are on few levels",)
        edit = QuantizedInputs(dict.fromkeys(values, levels))
        return Done(made, edit, tuple(skipped), notes, {"layers": facts})

    def _levels(self) -> InputLevels:
        return InputLevels(method=self.method, bits=self.bits, per=self.per)

    def _chosen(self, model: nn.Module) -> tuple[dict[str, nn.Module], list[tuple[str, str]]]:
        layers: dict[int, tuple[str, nn.Module]] = {}
        skipped: list[tuple[str, str]] = []
        for fqn, module in modules_of(model):
            if input_axes(module) is None or id(module) in layers:
                continue
            if any(fnmatch(fqn, pattern) for pattern in self.ignore):
                skipped.append((fqn, "ignored"))
            elif CHILD in module._modules:
                skipped.append((fqn, "its inputs are quantized already"))
            else:
                layers[id(module)] = fqn, module
        return dict(layers.values()), skipped

    def _values(
        self, model: nn.Module, layers: Mapping[str, nn.Module], batches: list[Any], seed: int
    ) -> dict[str, Tensor]:
        """By fqn, in the order of the model: values that the layer reads, the least and the greatest among them."""
        generator = torch.Generator().manual_seed(seed)
        is_exact = isinstance(make(CALIBRATIONS, self.calibration), MinMax)
        parts: dict[str, list[Tensor]] = {}

        def see(fqn: str, x: Tensor, y: Tensor) -> None:
            if not x.is_floating_point() or not x.numel():
                return
            flat = x.flatten()
            if is_exact or len(flat) <= _N_VALUES:
                found = torch.stack(flat.aminmax()) if is_exact else flat.clone()
            else:
                found = flat[torch.randint(len(flat), (_N_VALUES,), generator=generator).to(x.device)]
            parts.setdefault(fqn, []).append(found)

        watch(model, layers, batches, see)
        return {fqn: torch.cat(parts[fqn]) for fqn in layers if fqn in parts}
