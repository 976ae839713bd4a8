"""Gradients of the loss over data, taken without leaving a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

from secateur.criteria.samples import split
from secateur.errors import ConfigError, GroupError
from secateur.tensors import Inputs, on_device, wide_dtype

Loss = Callable[[Any, Any], Tensor]


def logits_of(outputs: Any) -> Tensor:
    """Return the tensor of logits in a model's outputs: itself, `.logits`, ["logits"], or the first of a tuple or dict.

    >>> logits_of({"logits": torch.zeros(2, 3), "hidden": None}).shape
    torch.Size([2, 3])
    """
    found = outputs
    if isinstance(getattr(outputs, "logits", None), Tensor):
        found = outputs.logits
    elif isinstance(outputs, Mapping) and outputs:
        found = outputs["logits"] if "logits" in outputs else next(iter(outputs.values()))
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    if not isinstance(found, Tensor):
        raise ConfigError(
            f"The model's outputs, {type(outputs).__name__}, hold no logits. "
            "Pass loss=, a function of (outputs, labels)."
        )
    return found


def cross_entropy(outputs: Any, labels: Any) -> Tensor:
    """Cross entropy of classes, mean over samples: -log softmax(logits)[label]. Logits (B, C) or (B, C, H, W).

    Raises:
        ConfigError: logits are (B, T, V) with labels (B, T), where only the caller knows whether labels are shifted.

    >>> cross_entropy((torch.zeros(2, 4),), torch.tensor([0, 3]))
    tensor(1.3863)
    """
    logits = logits_of(outputs)
    if logits.dim() == 3 and labels.dim() == 2 and logits.shape[:2] == labels.shape:
        raise ConfigError(
            f"Logits {tuple(logits.shape)} with labels {tuple(labels.shape)} are one class per token. Pass "
            "loss=next_token_cross_entropy for a causal language model, whose labels shift by one, or your own loss."
        )
    return functional.cross_entropy(logits, labels)


def next_token_cross_entropy(outputs: Any, labels: Tensor) -> Tensor:
    """Cross entropy of a causal language model: logits (B, T, V) at t against labels (B, T) at t + 1; -100 is ignored.

    >>> next_token_cross_entropy(torch.zeros(1, 3, 4), torch.tensor([[0, 1, -100]]))
    tensor(1.3863)
    """
    logits = logits_of(outputs)
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def collect_gradients(model: nn.Module, batches: Iterable[Any], loss: Loss = cross_entropy) -> dict[str, Tensor]:
    """Average the loss's gradient over data: G[key] = sum over batches b of n_b * dL_b/dW / sum over b of n_b.

    Runs in eval mode, so running statistics stay. Frozen parameters get gradients too. Training flags, requires_grad
    and `.grad` are afterwards exactly what they were, also after an error.

    Args:
        batches: (inputs, labels) pairs, inputs a tensor, a tuple or a dict, or dicts with a "labels" entry whose other
            entries are the model's keyword arguments. n_b is the length of the labels, 1 if they have none.
        loss: from the model's outputs and the labels to a scalar, a mean over the batch.
    Returns:
        by parameter key, as `model.named_parameters()` names them (a tied parameter once, under its first key),
        tensors of the parameter's shape and device, float32 or wider; zero where the loss does not depend on it.
    Raises:
        ConfigError: no batch, no labels, or a loss that is not a differentiable scalar.
        GroupError: the loss is NaN or Inf.
    """
    labelled = (split(batch, index) for index, batch in enumerate(batches))
    return _mean(model, labelled, loss, lambda gradient, n: gradient * n)


def collect_squared_gradients(
    model: nn.Module, batches: Iterable[Any], loss: Loss = cross_entropy, *, samples_per_step: int = 1
) -> dict[str, Tensor]:
    """Average the squared gradient of each sample's loss: F[key] = sum over samples n of (dL_n/dW)^2 / N.

    This is the diagonal of the empirical Fisher information, with the labels of the data. It takes a forward and a
    backward per step. With m = `samples_per_step` above 1 it adds up (sum over the step of dL_n/dW)^2 in place of the m
    squares: fewer, larger steps, which estimate F + (m - 1) * (dL/dW)^2, too much wherever the mean gradient is not 0.

    Args, returns and errors are those of `collect_gradients`; batches are cut into steps along their first axis.
    """
    if samples_per_step < 1:
        raise ConfigError(f"samples_per_step={samples_per_step} is not positive. 1 is exact.")
    labelled = (split(batch, index) for index, batch in enumerate(batches))
    steps = (step for pair in labelled for step in _steps(*pair, samples_per_step))
    return _mean(model, steps, loss, lambda gradient, n: gradient.square() * n**2)


def _mean(
    model: nn.Module, labelled: Iterable[tuple[Inputs, Any]], loss: Loss, added: Callable[[Tensor, int], Tensor]
) -> dict[str, Tensor]:
    """Return, by parameter, the sum over batches of added(gradient of the batch's mean loss, n_b) over sum of n_b."""
    keys = [key for key, p in model.named_parameters() if p.is_floating_point()]
    n_samples = 0
    with differentiable(model) as parameters:
        sums = [torch.zeros(p.shape, dtype=wide_dtype(p.dtype), device=p.device) for p in parameters]
        for index, (inputs, labels) in enumerate(labelled):
            args, kwargs = on_device(model, inputs)
            value = loss_value(loss(model(*args, **kwargs), like_parameters(model, labels)), index)
            n_here = len(labels) if isinstance(labels, Tensor) and labels.dim() else 1
            found = torch.autograd.grad(value, parameters, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total.add_(added(gradient.detach().to(total.dtype), n_here))
            n_samples += n_here
    if not n_samples:
        raise ConfigError("There is no batch to take gradients from. Pass batches anew: a generator is read only once.")
    return {key: total.div_(n_samples) for key, total in zip(keys, sums, strict=True)}


def _steps(inputs: Inputs, labels: Any, size: int) -> Iterator[tuple[Inputs, Any]]:
    """Cut a batch along the first axis of every tensor that is as long as the labels."""
    n = len(labels) if isinstance(labels, Tensor) and labels.dim() else 1
    for start in range(0, n, size):

        def part(t: Tensor, start: int = start) -> Tensor:
            return t[start : start + size] if t.dim() and len(t) == n else t

        yield pytree.tree_map_only(Tensor, part, (inputs, labels))


def like_parameters(model: nn.Module, value: Any) -> Any:
    """Return `value` with every tensor in it on the device of the model's first parameter."""
    device = next(model.parameters()).device
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), value)


@contextmanager
def differentiable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Put the model in eval mode with gradients of every parameter, give these, and put all back afterwards."""
    training = [(module, module.training) for module in model.modules()]
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    required = [parameter.requires_grad for parameter in parameters]
    try:
        model.eval()
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield parameters
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in zip(parameters, required, strict=True):
            parameter.requires_grad_(flag)


def loss_value(value: Any, index: int) -> Tensor:
    """Return the loss of batch number `index` as a scalar; ConfigError or GroupError where it can't be one."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(
            f"The loss of batch {index} is {shape}, not a scalar tensor. Reduce it, for example with mean()."
        )
    if not torch.isfinite(value).all():
        raise GroupError(
            f"The loss of batch {index} is {value.item()}. Look for NaN or Inf in the weights or in this batch."
        )
    if not value.requires_grad:
        raise ConfigError(f"The loss of batch {index} does not depend on the parameters. Is its forward under no_grad?")
    return value.squeeze()
