"""Units and bits under one size: which units stay, and how many bits the weights between them get.

A unit that goes has 0 bits, and takes its scales, biases and norms along. What groups lose by width and weights by bits
are curves of one kind, so one allocation chooses both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from secateur.allocate import Allocation, Budget, Cost, DynamicProgram, ErrorCurve, Space, allocate
from secateur.coding import codings_of
from secateur.coding.storage import own_keys
from secateur.dims.algebra import Dim, count, new
from secateur.errors import ConfigError
from secateur.graph import Graph
from secateur.planning import Scores, space_of
from secateur.quantize import PerChannel, Quantizer
from secateur.tensors import distinct, named_tensors

METHOD = DynamicProgram()


@dataclass(frozen=True)
class Option:
    """One number of bits for a weight: its coding, and what the network's outputs lose when it alone is coded so.

    The coding is None at 0 bits, where the weight is zero and takes no bytes.
    """

    bits: int
    coding: Quantizer | None
    loss: float


Options = Mapping[str, Sequence[Option]]
"""By weight, what may be chosen for it, of the fewest bits first."""


class Storage:
    """Bytes that a model's tensors take in its file, at any widths and bits.

    bytes = sum over coded weights of (n * bits / 8 + n_scales * size) + sum over all other tensors of n * size, where
    each n is a product of widths. The file has a header besides, and is shorter where codes are entropy-coded.

    Args:
        options: what may be chosen, for weights of the model.
        graph: says which axes are widths of groups; None where all stay.
    """

    def __init__(self, model: nn.Module, options: Options, graph: Graph | None = None) -> None:
        self.options = options
        self.graph = graph
        state, masked = model.state_dict(), codings_of(model)
        tensors = distinct({key: t for key, t in named_tensors(model).items() if key in state})
        self._axes = {key: _axes(key, t, graph) for key, t in tensors.items()}
        own = {key: own_keys(model, key) if key in masked else [key] for key in options}
        self._place = {key: next(name for name in names if name in self._axes) for key, names in own.items()}
        coded = {name for names in own.values() for name in names}
        self._size = {key: t.element_size() for key, t in tensors.items() if key not in coded}

    @property
    def n_weights(self) -> int:
        """Numbers in the weights that are coded, at full widths."""
        return sum(math.prod(d.size for d in self._axes[place]) for place in self._place.values())

    def n_bytes(self, levels: Mapping[str, int], counts: Mapping[str, int] | None = None) -> int:
        """The bytes where weight w takes its option number levels[w] and group g keeps counts[g] units.

        What is not mentioned takes most bits, and keeps all units.
        """
        widths = {} if self.graph is None else self.graph.leaf_counts(counts or {})
        shapes = {key: tuple(count(d, widths) for d in axes) for key, axes in self._axes.items()}
        chosen = {key: given[levels.get(key, -1)].coding for key, given in self.options.items()}
        total = sum(n_bytes(coding, shapes[self._place[key]]) for key, coding in chosen.items() if coding is not None)
        return total + sum(size * math.prod(shapes[key]) for key, size in self._size.items())


def n_bytes(coding: Quantizer, shape: tuple[int, ...]) -> int:
    """Bytes of a weight of that shape in the file: codes of equal width, scales, zero points."""
    try:
        n_scales = math.prod(coding.granularity.scale_shape(shape))
    except ConfigError:  # fewer inputs may not divide into groups; such a weight gets a scale per channel
        n_scales = math.prod(PerChannel().scale_shape(shape))
    width = (coding.n_codes - 1).bit_length()
    return -(-math.prod(shape) * width // 8) + len(coding.stored) * n_scales * coding.scale.element_size()


def share_out(
    options: Options, storage: Storage, size_bytes: int, scores: Scores | None = None
) -> tuple[dict[str, Option], Allocation]:
    """Choose an option for each weight and units for each group, so that their losses add up to little.

    minimise sum over weights w of loss_w(bits_w) + sum over groups g of errors_g(count_g), subject to
    bytes(counts, bits) <= size_bytes. A weight's size is a product of its bits and its widths, so the exchange rates of
    steps in either are taken at the choice so far, and the choice repeated (see `DynamicProgram`).

    Args:
        size_bytes: by the measure of `storage`.
        scores: error curves of the groups of the storage's graph that may shrink, on one scale with the losses.
    Returns:
        The option of each weight; and what each group keeps, with notes on the budget.
    Source: Shoham and Gersho, "Efficient Bit Allocation for an Arbitrary Set of Quantizers", IEEE Trans. ASSP 1988, for
        one exchange rate; van Baalen et al., "Bayesian Bits: Unifying Quantization and Pruning", NeurIPS 2020, for
        pruning as 0 bits.
    Differs: Bayesian Bits learns gates by gradients; here losses are measured, and the choice is a knapsack.

    >>> from secateur.quantize import PerTensor, Symmetric
    >>> def option(bits, loss):
    ...     return Option(bits, Symmetric(torch.ones(1, 1), PerTensor(), bits), loss)
    >>> options = {"0.weight": [option(2, 9.0), option(8, 0.0)], "1.weight": [option(2, 0.1), option(8, 0.0)]}
    >>> net = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    >>> chosen, _ = share_out(options, Storage(net, options), 140)
    >>> {key: option.bits for key, option in chosen.items()}
    {'0.weight': 8, '1.weight': 2}
    """
    curves = {key: _curve(given) for key, given in options.items()}
    if not curves and not scores:
        return {}, Allocation({}, {})

    def cost(counts: Mapping[str, int]) -> Cost:
        widths = {name: n for name, n in counts.items() if name not in options}
        return Cost(0, 0, storage.n_bytes({key: counts[key] - 1 for key in options if key in counts}, widths))

    space = space_of(storage.graph, scores) if storage.graph is not None and scores else Space({}, cost)
    joint = replace(space, sizes={**space.sizes, **{key: len(given) for key, given in options.items()}}, cost=cost)
    found = allocate({**(scores or {}), **curves}, joint, Budget(size_bytes=size_bytes), METHOD)
    units = {name: keep for name, keep in found.keep.items() if name not in options}
    chosen = {key: given[len(found.keep[key]) - 1] for key, given in options.items()}
    least = cost({name: len(keep) for name, keep in found.keep.items()}).size_bytes
    short = (f"{size_bytes:,} bytes are out of reach: the fewest units and bits allowed take {least:,}",)
    return chosen, replace(found, keep=units, notes=short if least > size_bytes else found.notes)


def _axes(key: str, tensor: Tensor, graph: Graph | None) -> tuple[Dim, ...]:
    value = None if graph is None else graph.trace.tensors.get(key)
    return tuple(map(new, tensor.shape)) if graph is None or value is None else graph.solution.axes(value)


def _curve(options: Sequence[Option]) -> ErrorCurve:
    """Losses as a curve over widths: a width of k stands for option k - 1, and none has width 0."""
    losses = torch.tensor([options[0].loss, *(option.loss for option in options)], dtype=torch.float64)
    return ErrorCurve(losses - losses[-1], torch.arange(len(options)))
