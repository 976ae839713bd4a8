"""Quantized inputs: what a linear layer or a convolution reads is put on few levels, as a kernel of few bits has it.

y = layer(levels(x) * scale)

The layer keeps its class, its weight and the weight's key. It gets one child, `input_quantizer`, and a hook without a
state of its own that calls the child before the forward. So copies take it along, the scale is in the state dict, and
captures and exports record ordinary operators.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from secateur.coding.base import CODINGS
from secateur.errors import ConfigError, PlanError
from secateur.layers import is_transposed
from secateur.quantize.calibration import MINMAX, SMALLEST, Calibration
from secateur.quantize.granularity import PerTensor
from secateur.quantize.quantizer import straight
from secateur.quantize.uniform import Symmetric, Uniform, check_bits, symmetric_codes
from secateur.tensors import modules_of, wide, wide_dtype

CHILD = "input_quantizer"
PER = ("static", "batch", "token")


class Dynamic(nn.Module):
    """y = round(x / scale) * scale, where the range of x at hand chooses the scale. Gradients pass straight through.

    Args:
        bits: 2 to 8.
        is_symmetric: levels are symmetric about 0; otherwise they go from the least to the greatest value, 0 included.
        axes: negative, of the values that share a range; None: all values do.

    >>> Dynamic(2, True, (-1,))(torch.tensor([[1.0, 0.4, -0.9], [0.0, 8.0, 5.0]]))
    tensor([[ 1.,  0., -1.],
            [ 0.,  8.,  8.]])
    """

    def __init__(self, bits: int, is_symmetric: bool, axes: tuple[int, ...] | None) -> None:
        super().__init__()
        self.bits = check_bits(bits)
        self.is_symmetric = is_symmetric
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """In float32 or more, back in the dtype of x."""
        if not x.numel():
            return x
        axes = tuple(range(-x.ndim, 0)) if self.axes is None else self.axes
        values = wide(x)
        seen = values.detach()
        lowest: Tensor | int
        if self.is_symmetric:
            n_codes = symmetric_codes(self.bits)
            lowest = -(n_codes // 2)
            scale = (seen.abs().amax(axes, keepdim=True) / -lowest).clamp_min(SMALLEST)
        else:
            n_codes = 1 << self.bits
            low, high = (seen.amin(axes, keepdim=True).clamp_max(0), seen.amax(axes, keepdim=True).clamp_min(0))
            scale = ((high - low) / (n_codes - 1)).clamp_min(SMALLEST)
            lowest = (low / scale).round()
        u = values / scale
        levels = u.round().clamp(lowest, lowest + (n_codes - 1))  # type: ignore[arg-type]
        return (straight(levels, u) * scale).to(x.dtype)

    def extra_repr(self) -> str:
        """The settings."""
        return f"bits={self.bits}, is_symmetric={self.is_symmetric}, axes={self.axes}"


@dataclass(frozen=True, kw_only=True)
class InputLevels:
    """How the inputs of one layer are quantized.

    Attributes:
        method: symmetric or affine.
        bits: 2 to 8.
        per: what shares a range. static: all values ever, as calibration saw them; the scale is a buffer, and learns in
            training as that of a weight does. batch: the values of one call. token: the features of one position; for
            a convolution, one image.
    """

    method: str = "affine"
    bits: int = 8
    per: str = "static"

    def __post_init__(self) -> None:
        if self.method not in CODINGS or not issubclass(CODINGS[self.method], Uniform):
            raise ConfigError(f"method='{self.method}' has no range. Take symmetric or affine.")
        check_bits(self.bits)
        if self.per not in PER:
            raise ConfigError(f"per='{self.per}' is none of {', '.join(PER)}.")

    def module(self, layer: nn.Module, values: Tensor | None = None, calibration: Calibration = MINMAX) -> nn.Module:
        """The quantizer for a layer's inputs.

        Args:
            values: (n,), seen on calibration data, which the range is chosen by; None: the scale is 1 for now.
        Raises:
            ConfigError: a value is NaN or Inf.
        """
        kind = CODINGS[self.method]
        assert issubclass(kind, Uniform)
        if self.per != "static":
            axes = input_axes(layer) if self.per == "token" else None
            return Dynamic(self.bits, issubclass(kind, Symmetric), axes)
        held = next(layer.parameters())
        like = torch.empty(1, dtype=wide_dtype(held.dtype), device=held.device)
        if values is None:
            return kind.blank(like, {"bits": self.bits, **PerTensor().settings()})
        return kind.fit(values.to(like), PerTensor(), self.bits, calibration)


def input_axes(module: nn.Module) -> tuple[int, ...] | None:
    """The axes of a layer's input that one output position may read: (-1,), or channels and space of a convolution.

    None where the module is no layer that multiplies what it reads by a weight.

    >>> input_axes(nn.Conv2d(1, 1, 1)), input_axes(nn.ReLU())
    ((-3, -2, -1), None)
    """
    if isinstance(module, _ConvNd):
        return tuple(range(-len(module.kernel_size) - 1, 0))
    return (-1,) if isinstance(module, nn.Linear) or is_transposed(module) else None


def attach_inputs_(model: nn.Module, fqn: str, quantizer: nn.Module) -> None:
    """Quantize what a layer reads.

    Raises:
        PlanError: the model has no such layer, or its inputs are quantized already.

    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> attach_inputs_(net, "0", InputLevels(bits=4).module(net[0]))
    >>> sorted(net.state_dict())
    ['0.bias', '0.input_quantizer.gain', '0.input_quantizer.scale', '0.input_quantizer.zero_point', '0.weight']
    """
    layer = dict(modules_of(model)).get(fqn)
    if layer is None or input_axes(layer) is None:
        raise PlanError(f"The model has no layer '{fqn}' to quantize the inputs of. It has another architecture.")
    if CHILD in layer._modules:
        raise PlanError(f"The inputs of '{fqn}' are quantized already.")
    layer.add_module(CHILD, quantizer.train(layer.training))
    layer.register_forward_pre_hook(_quantize, with_kwargs=True)


def input_quantizers(model: nn.Module) -> dict[str, nn.Module]:
    """The quantizers of inputs, by the fqn of the layer."""
    return {fqn: module._modules[CHILD] for fqn, module in modules_of(model) if CHILD in module._modules}  # type: ignore[misc]


def _quantize(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A layer's first argument on its levels. It finds its quantizer in the layer, so that copies find their own."""
    quantizer: Any = layer._modules[CHILD]
    if args:
        return (quantizer(args[0]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: quantizer(kwargs[first])}
