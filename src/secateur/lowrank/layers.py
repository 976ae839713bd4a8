"""Layers as kernels, and chains of layers as products of kernels: one layout for matrices and convolutions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.layers import is_transposed
from secateur.lowrank.forms import FORMS, Rank, Shape

_CONVOLUTIONS: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


def fault_of(layer: nn.Module) -> str | None:
    """Why a layer can't be factored; empty where it can, None for what is no such layer."""
    kind = type(layer)
    if kind is nn.Linear or is_transposed(layer):
        return ""
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        return "transposed convolution"
    if kind in _CONVOLUTIONS.values():
        assert isinstance(layer, nn.modules.conv._ConvNd)
        is_even = layer.padding == "same" and any(p % 2 for p in _spans(layer))
        return "it pads one side more than the other" if is_even else ""
    if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
        return f"{kind.__name__} is more than a plain layer"
    return None


def kernel_of(layer: nn.Module) -> Tensor:
    """The weight as (groups, outputs, inputs, *window), a view."""
    weight = _weight(layer)
    if is_transposed(layer):
        return weight.T[None]
    return weight.reshape(_groups(layer), -1, *weight.shape[1:])


@dataclass(frozen=True)
class _Geometry:
    """How a convolution moves: numbers by axis, and what it pads with."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    padding_mode: str

    def along(self, axes: range) -> _Geometry:
        """The moves along some axes, and none along the others."""

        def only(numbers: tuple[int, ...], still: int) -> tuple[int, ...]:
            return tuple(n if a in axes else still for a, n in enumerate(numbers))

        mode = self.padding_mode if len(axes) else "zeros"
        return _Geometry(only(self.stride, 1), only(self.padding, 0), only(self.dilation, 1), mode)

    @classmethod
    def joined(cls, parts: Sequence[_Geometry]) -> _Geometry:
        """Undo `along`, of which each axis has one."""

        def largest(numbers: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
            return tuple(map(max, zip(*numbers, strict=True)))

        mode = next((part.padding_mode for part in parts if part.padding_mode != "zeros"), "zeros")
        strides, paddings, dilations = ([getattr(p, n) for p in parts] for n in ("stride", "padding", "dilation"))
        return cls(largest(strides), largest(paddings), largest(dilations), mode)


class Factored(nn.Sequential):
    """A layer as a chain of thinner ones; `merged` is the one layer again.

    >>> layer = Factored.blank(nn.Linear(8, 6), "svd", (2,))
    >>> [tuple(part.weight.shape) for part in layer]
    [(2, 8), (6, 2)]
    """

    form: str

    @classmethod
    def blank(cls, layer: nn.Module, form: str, rank: Rank) -> Factored:
        """The chain in place of a layer, of its dtype and device, with weights of zero and the layer's own bias.

        Raises:
            PlanError: the layer can't take that form or rank.
        """
        kernel = kernel_of(layer)
        maker = FORMS[form]()
        fault = fault_of(layer) or maker.fault(kernel.shape)
        if fault or not all(0 < r <= max(kernel[0].shape[0], kernel[0, 0].numel()) for r in rank):
            raise PlanError(
                f"A layer {tuple(kernel.shape)} can't be '{form}' of rank {rank}: {fault or 'no such rank'}."
            )
        shapes, geometry = maker.shapes(kernel.shape, rank), _geometry(layer)
        axes = maker.axes(len(geometry.stride))
        ins = [kernel.shape[2], *(shape[1] for shape in shapes)]
        parts = [_part(layer, *given, geometry) for given in zip(shapes, ins, axes, strict=False)]
        parts[-1].register_parameter("bias", layer.bias)  # type: ignore[arg-type]
        made = cls(*parts)
        made.form = form
        return made.train(layer.training)

    def factors(self) -> list[Tensor]:
        """The weights as kernels (groups, outputs, inputs, *window)."""
        weights = [_weight(part) for part in self]
        return [weight.reshape(_groups(self[0]), -1, *weight.shape[1:]) for weight in weights]

    def fill_(self, factors: Sequence[Tensor]) -> None:
        """Take on these weights. Raises PlanError where their shapes are not those of the chain."""
        with torch.no_grad():
            for mine, given in zip(self.factors(), factors, strict=True):
                if mine.shape != given.shape:
                    raise PlanError(f"A factor is {tuple(given.shape)}, the chain has {tuple(mine.shape)}.")
                mine.copy_(given)

    @property
    def weight(self) -> Tensor:
        """The weight of the one layer, for code that reads it, as `nn.TransformerEncoderLayer` does."""
        return self.merged().weight  # type: ignore[return-value]

    @property
    def bias(self) -> Tensor | None:
        """The bias of the one layer."""
        return self[-1].bias  # type: ignore[return-value]

    def merged(self) -> nn.Module:
        """One layer that computes what the chain computes, up to rounding."""
        factors = self.factors()
        with torch.no_grad():
            kernel = FORMS[self.form]().product([f.double() for f in factors]).to(factors[0].dtype)
        last, weight = self[-1], kernel.flatten(0, 1).contiguous()
        if isinstance(last, nn.Linear):
            layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], last.bias is not None, device="meta")
        else:
            geometry = _Geometry.joined([_geometry(part) for part in self])
            layer = _convolution(weight.shape, geometry, groups=_groups(self[0]))
        layer.weight = nn.Parameter(weight, _weight(last).requires_grad)
        layer.register_parameter("bias", last.bias)  # type: ignore[arg-type]
        return layer.train(self.training)


def _part(layer: nn.Module, shape: tuple[int, ...], ins: int, axes: range, geometry: _Geometry) -> nn.Module:
    """One layer of a chain, which reads `ins` units of each group."""
    weight, groups = _weight(layer), shape[0]
    if not geometry.stride:
        part: nn.Module = nn.Linear(shape[2], shape[1], bias=False, device="meta")
        shape = shape[1:]
    else:
        shape = (shape[0] * shape[1], *shape[2:])
        part = _convolution(shape, geometry.along(axes), groups=groups * ins // shape[1])
    zeros = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
    part.weight = nn.Parameter(zeros, weight.requires_grad)
    return part


def _convolution(shape: Shape, geometry: _Geometry, groups: int) -> nn.Module:
    """A convolution with a weight of that shape, which is not there yet."""
    outs, ins, *window = shape
    return _CONVOLUTIONS[len(window)](
        groups * ins,
        outs,
        tuple(window),  # type: ignore[arg-type]
        geometry.stride,  # type: ignore[arg-type]
        geometry.padding,  # type: ignore[arg-type]
        geometry.dilation,  # type: ignore[arg-type]
        groups,
        bias=False,
        padding_mode=geometry.padding_mode,  # type: ignore[arg-type]
        device="meta",
    )


def _geometry(layer: nn.Module) -> _Geometry:
    if not isinstance(layer, nn.modules.conv._ConvNd):
        return _Geometry((), (), (), "zeros")
    padding = layer.padding
    if isinstance(padding, str):
        padding = tuple(span // 2 if padding == "same" else 0 for span in _spans(layer))
    return _Geometry(layer.stride, padding, layer.dilation, layer.padding_mode)


def _spans(layer: nn.modules.conv._ConvNd) -> list[int]:
    """How far a window reaches along each axis, beside its first place."""
    return [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]


def _weight(layer: nn.Module) -> Tensor:
    """The weight as the model computes with it, be it coded or not."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return weight


def _groups(layer: nn.Module) -> int:
    return layer.groups if isinstance(layer, nn.modules.conv._ConvNd) else 1
