"""Where a model's layers are run: which can be factored, on how many positions, and what they read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.criteria.samples import inputs_of
from secateur.forward import plain_forward
from secateur.lowrank.forms import Form, Rank
from secateur.lowrank.layers import Factored, fault_of, kernel_of, rows_of
from secateur.tensors import Inputs, modules_of, on_device


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

    def record(site: Site, x: Tensor, y: Tensor) -> None:
        n_axes = kernel_of(site.layer).dim() - 3
        before, after = tuple(x.shape[x.dim() - n_axes :]), tuple(y.shape[y.dim() - n_axes :])
        n_samples = x.numel() // (math.prod(before) * kernel_of(site.layer).shape[2] * kernel_of(site.layer).shape[0])
        site.calls.append((n_samples, before, after))

    watch(model, sites.values(), [example], record)
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
    """Sums of x x^T over what each layer reads, (groups, k, k) float64 on the model's device, k = inputs * window.

    Args:
        max_rows: about how many positions of each batch count; they are spread evenly over it.
    """
    grams: dict[str, Tensor] = {}

    def add(site: Site, x: Tensor, y: Tensor) -> None:
        rows = rows_of(site.layer, x, max_rows).movedim(0, 1)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        seen = (rows.mT @ rows).double()
        grams[site.fqn] = grams[site.fqn] + seen if site.fqn in grams else seen

    watch(model, sites, (inputs_of(batch) for batch in batches), add)
    return grams


def watch(
    model: nn.Module,
    sites: Iterable[Site],
    batches: Iterable[Inputs],
    see: Callable[[Site, Tensor, Tensor], None],
) -> None:
    """Run a model on batches, in eval mode and without gradients, and show what layers read and give."""

    def hook(site: Site) -> Callable[..., None]:
        return lambda module, args, kwargs, out: see(site, (*args, *kwargs.values())[0], out)

    with plain_forward(model), ExitStack() as stack:
        for site in sites:
            stack.enter_context(site.layer.register_forward_hook(hook(site), with_kwargs=True))
        for inputs in batches:
            args, kwargs = on_device(model, inputs)
            model(*args, **kwargs)
