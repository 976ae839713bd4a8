"""Gradients of the loss over data, taken without leaving a trace in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from secateur.errors import ConfigError, GroupError

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
    parameters = {key: p for key, p in model.named_parameters() if p.is_floating_point()}
    n_samples = 0
    with _evaluated(model, parameters.values()):
        sums = [torch.zeros(p.shape, dtype=_wide(p.dtype), device=p.device) for p in parameters.values()]
        for index, batch in enumerate(batches):
            inputs, labels = _split(batch, index)
            device = sums[0].device if sums else torch.device("cpu")
            value = _loss_value(model, _to(inputs, device), _to(labels, device), loss, index)
            n_here = len(labels) if isinstance(labels, Tensor) and labels.dim() else 1
            found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                if gradient is not None:
                    total.add_(gradient.detach(), alpha=n_here)
            n_samples += n_here
        if not n_samples:
            raise ConfigError(
                "There is no batch to take gradients from. Pass batches anew: a generator is read only once."
            )
        return {key: total.div_(n_samples) for key, total in zip(parameters, sums, strict=True)}


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype to add up in: float32, or wider if the parameter is."""
    return torch.promote_types(dtype, torch.float32)


@contextmanager
def _evaluated(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Put the model in eval mode with every parameter differentiable, and put all back afterwards."""
    training = [(module, module.training) for module in model.modules()]
    required = [(parameter, parameter.requires_grad) for parameter in parameters]
    try:
        model.eval()
        for parameter, _ in required:
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, flag in training:
            module.training = flag
        for parameter, flag in required:
            parameter.requires_grad_(flag)


def _split(batch: Any, index: int) -> tuple[Any, Any]:
    """Return (inputs, labels) of one batch."""
    if isinstance(batch, Mapping):
        if batch.get("labels") is not None:
            return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
        found = f"a dict with keys {', '.join(map(str, batch))}"
    elif isinstance(batch, (tuple, list)) and len(batch) == 2 and batch[1] is not None:
        return batch[0], batch[1]
    else:
        found = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    raise ConfigError(
        f"Batch {index} has no labels: it is {found}. "
        "Gradients of a loss take (inputs, labels) pairs or dicts with 'labels'. "
        "Without labels, choose a criterion that needs no gradients, such as 'l2'."
    )


def _loss_value(model: nn.Module, inputs: Any, labels: Any, loss: Loss, index: int) -> Tensor:
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    elif isinstance(inputs, (tuple, list)):
        outputs = model(*inputs)
    else:
        outputs = model(inputs)
    value = loss(outputs, labels)
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


def _to(value: Any, device: torch.device) -> Any:
    """Return `value` with every tensor in it on `device`."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        moved = [_to(item, device) for item in value]
        return tuple(moved) if isinstance(value, tuple) else moved
    return value
