"""Gates: a factor on each unit, and how the loss of each sample changes with it. One pass gives all groups.

Imagine every unit c multiplied by a gate m[c] = 1 wherever an operator sums over it. Removing the unit is m[c] = 0. The
derivative of sample n's loss by that gate is

    gamma[n, c] = sum over readers r and positions p of a_r[n, c, p] * dL_n / da_r[n, c, p],

activation times gradient, with the gradient through reader r alone (a residual stream flows on beside its readers). It
equals sum over the readers' weights w of unit c of w * dL_n / dw, exactly. From it follow the first-order change of the
loss (-gamma), Fisher information of gates (the mean of gamma^2), and their covariances within a group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.criteria.activations import followed
from secateur.criteria.gradients import Loss, cross_entropy, differentiable, like_parameters, logits_of, loss_value
from secateur.criteria.reading import Readings, argument, run_along, sample_count
from secateur.criteria.samples import split
from secateur.forward import plain_forward
from secateur.law import put
from secateur.observe import Follower
from secateur.record import Op

if TYPE_CHECKING:
    from secateur.dims.groups import Group

Gates = dict[str, Tensor]
"""By group, (n_samples, size) float32: gamma[n, c]."""


def collect_gates(
    model: nn.Module, groups: Iterable[Group], batches: Iterable[Any], loss: Loss = cross_entropy
) -> Gates:
    """Return the derivative of each sample's loss by a gate on each unit, from a forward and a backward per batch.

    Runs in eval mode and leaves the model as it was. Holds the activations of one batch at a time, and at the end one
    number per sample and unit. Where a tensor has no axis of samples (a table that all samples share), what it
    contributes is shared evenly: sums over samples are exact, their squares too small.

    Args:
        groups: of a trace of this model. They are found again by name in the trace of the first batch.
        batches: (inputs, labels) pairs, or dicts with "labels".
        loss: from the model's outputs and the labels to a scalar, a mean over the samples of the batch.
    Returns:
        by group; groups that no operator sums over are left out.
    Raises:
        ConfigError: no batch, no labels, or a loss that is not a differentiable scalar.
        GroupError: the loss is NaN or Inf.
        CaptureError: the forward fails, or takes another path on some batch or with gradients.
    """
    labelled = [split(batch, index) for index, batch in enumerate(batches)]
    labels = [found for _, found in labelled]
    inputs = [found for found, _ in labelled]
    return _collect(model, groups, inputs, lambda outputs, i: loss(outputs, like_parameters(model, labels[i])))


def collect_model_gates(
    model: nn.Module, groups: Iterable[Group], batches: Iterable[Any], generator: torch.Generator | None = None
) -> Gates:
    """`collect_gates` with labels drawn from the model's own predictions: no labels are needed.

    L_n = -sum over positions t of log p(y_t | x_n), with y_t drawn from p( . | x_n). The mean of gamma^2 is then an
    unbiased estimate of the Fisher information of the gates, the second order of the KL divergence.

    Args:
        batches: inputs, with labels (not looked at) or without.
        generator: for the draws; without it they are those of seed 0.
    """
    drawn = torch.Generator().manual_seed(0) if generator is None else generator.clone_state()
    return _collect(model, groups, batches, lambda outputs, _: _own_loss(logits_of(outputs), drawn))


def _own_loss(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Cross entropy of labels drawn from softmax(logits), (B, C), (B, T, C) or (B, C, H, W); summed, over B."""
    scores = logits.movedim(1, -1) if logits.dim() == 4 else logits
    flat = scores.reshape(-1, scores.shape[-1]).float()
    drawn = torch.multinomial(flat.detach().softmax(1).cpu(), 1, generator=generator)[:, 0]
    return functional.cross_entropy(flat, drawn.to(flat.device), reduction="sum") / len(logits)


def _collect(
    model: nn.Module, groups: Iterable[Group], batches: Iterable[Any], loss: Callable[[Any, int], Tensor]
) -> Gates:
    """Run each batch forward and backward. `loss` takes the outputs and the number of the batch."""
    found: dict[str, list[Tensor]] = {}
    for index, (inputs, readings) in enumerate(followed(model, groups, batches)):
        follower = _GateFollower(readings, sample_count(inputs))
        with plain_forward(model), differentiable(model) as parameters:
            outputs = run_along(model, inputs, follower)
            follower.attach()
            value = loss_value(loss(outputs, index), index)
            torch.autograd.grad(value, parameters, allow_unused=True)  # runs the hooks of the follower
        for name, gates in follower.gates.items():
            found.setdefault(name, []).append(gates.float().cpu())
    return {name: torch.cat(parts) for name, parts in found.items()}


class _GateFollower(Follower):  # type: ignore[no-untyped-call]
    """Asks for the gradient of each reader's output, and turns it into those of gates when it comes."""

    def __init__(self, readings: Readings, n_samples: int) -> None:
        super().__init__(readings.trace)
        self.readings = readings
        self.n_samples = n_samples
        self.gates: dict[str, Tensor] = {}
        self.waiting: tuple[Op, Any, tuple[Any, ...], dict[str, Any], Tensor] | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.attach()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def call(self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = super().call(op, func, args, kwargs)
        if op.index in self.readings.by_op:
            self.waiting = op, func, args, kwargs, out[0] if isinstance(out, tuple | list) else out
        return out

    def attach(self) -> None:
        """Put the hook on the last reader's output, which is part of the graph only once its call has returned."""
        if self.waiting is not None:
            op, func, args, kwargs, out = self.waiting
            self.waiting = None
            if out.requires_grad:
                out.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: self._add(op, func, args, kwargs, gradient)
                )

    def _add(self, op: Op, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], gradient: Tensor) -> None:
        """Take the gradient back through this one operator, and sum activation times gradient per sample and unit."""
        for position in {reading.position for reading in self.readings.by_op[op.index]}:
            x = argument(position, args, kwargs).detach().requires_grad_(True)
            own_args, own_kwargs = put(args, kwargs, position, x)
            with torch.enable_grad():
                out = func(*own_args, **own_kwargs)
            (back,) = torch.autograd.grad(out[0] if isinstance(out, tuple | list) else out, x, gradient)
            for reading in self.readings.by_op[op.index]:
                if reading.position == position:
                    a, da = (reading.units(t, self.n_samples).flatten(2).float() for t in (x.detach(), back))
                    # The loss is a mean: what reaches a sample is 1/n of the gradient of its own loss.
                    gates = (a * da).sum(2) * (self.n_samples if len(a) == self.n_samples else 1)
                    self.gates[reading.group] = self.gates.get(reading.group, 0) + gates.expand(self.n_samples, -1)
