"""Where a model's layers are run: which can be factored, on how many positions, and what they read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.criteria.samples import inputs_of
from secateur.forward import plain_forward
from secateur.layers import Layer, gram, is_transposed, sum_over_inputs
from secateur.lowrank.forms import Form, Rank
from secateur.lowrank.layers import Factored, fault_of, kernel_of
from secateur.tensors import Inputs, modules_of, on_device
from secateur.watching import watch


@dataclass
class Site:
    """A layer and its calls: samples, and the positions before and after it along each axis of its window."""

    fqn: str
    layer: nn.Module
    calls: list[tuple[int, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def cost(self, form: Form | None = None, rank: Rank = ()) -> tuple[int, int]:
        """(parameters, MACs) of the weights, as they are or as a chain. 1 MAC = 2 FLOPs; over all calls."""
        shape = tuple(kernel_of(self.layer).shape)
        n_axes = len(shape) - 3
        shapes, axes = ([shape], [range(n_axes)]) if form is None else (form.shapes(shape, rank), form.axes(n_axes))
        sizes = [math.prod(s) for s in shapes]
        macs = 0
        for n_samples, before, after in self.calls:
            moved: set[int] = set()
            for size, slid in zip(sizes, axes, strict=True):
                moved |= set(slid)
                macs += size * n_samples * math.prod(after[a] if a in moved else before[a] for a in range(n_axes))
        return sum(sizes), macs


def find_sites(model: nn.Module, example: Inputs) -> tuple[list[Site], list[tuple[str, str]]]:
    """The layers that can be factored, with their calls on the example, and the others with reasons.

    A layer that is not called (its parent reads the weight itself) or whose weight another one shares is left alone.
    """
    skipped: list[tuple[str, str]] = []
    sites: dict[int, Site] = {}
    owners: dict[int, set[int]] = {}
    inside = {id(part) for module in model.modules() if isinstance(module, Factored) for part in module}
    for fqn, module in modules_of(model):
        for parameter in module._parameters.values():
            owners.setdefault(id(parameter), set()).add(id(module))
        fault = fault_of(module)
        if fault == "" and id(module) in inside:
            fault = "part of a chain already; merge first"
        if fault:
            skipped.append((fqn, fault))
        elif fault == "":
            sites.setdefault(id(module), Site(fqn, module))

    def record(fqn: str, x: Tensor, y: Tensor) -> None:
        site = by_name[fqn]
        n_axes = kernel_of(site.layer).dim() - 3
        before, after = tuple(x.shape[x.dim() - n_axes :]), tuple(y.shape[y.dim() - n_axes :])
        n_samples = x.numel() // (math.prod(before) * kernel_of(site.layer).shape[2] * kernel_of(site.layer).shape[0])
        site.calls.append((n_samples, before, after))

    by_name = {site.fqn: site for site in sites.values()}
    watch(model, {fqn: site.layer for fqn, site in by_name.items()}, [example], record)
    found = []
    for site in sites.values():
        if not site.calls:
            skipped.append((site.fqn, "its forward is not called"))
        elif len(owners[id(site.layer.weight)]) > 1:
            skipped.append((site.fqn, "tied to another weight"))
        else:
            found.append(site)
    return found, skipped


def collect_grams(
    model: nn.Module, sites: Iterable[Site], batches: Iterable[Any], *, max_rows: int = 8192
) -> dict[str, Tensor]:
    """Sums of x x^T over what each layer reads, (groups, k, k) float64, with k = inputs * window as in `kernel_of`.

    Args:
        max_rows: about how many positions of each batch count; they are spread evenly over it.
    """
    found = {site.fqn: site.layer for site in sites}
    layers = {fqn: Layer(fqn, layer, is_transposed(layer)) for fqn, layer in found.items()}

    def run() -> None:
        for batch in batches:
            args, kwargs = on_device(model, inputs_of(batch))
            model(*args, **kwargs)

    def of(rows: Tensor) -> Tensor:
        return gram(rows[:: max(1, len(rows) // max_rows)]).double()

    with plain_forward(model):
        sums = sum_over_inputs(layers, run, of)
    for fqn, total in sums.items():  # from columns by position and channel to channel and position
        order = torch.arange(total.shape[-1]).reshape(-1, layers[fqn].n_inputs).T.flatten()
        sums[fqn] = total[:, order][:, :, order]
    return sums
