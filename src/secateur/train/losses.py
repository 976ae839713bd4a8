"""From outputs and a batch to the number that training makes small."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from secateur.data.batches import Batch, forward, labels_of, logits_of
from secateur.errors import ConfigError

Loss = Callable[[Any, Batch], Tensor]  # (what the model returned, the batch) to a scalar


def cross_entropy(outputs: Any, batch: Batch, *, label_smoothing: float = 0.0) -> Tensor:
    """Mean over labels of -log softmax(logits)[label], in nats. Logits are (B, ..., K) for labels (B, ...).

    >>> import torch
    >>> cross_entropy(torch.zeros(1, 4), (torch.zeros(1), torch.tensor([2])))
    tensor(1.3863)
    """
    logits = logits_of(outputs)
    return F.cross_entropy(logits.flatten(0, -2), labels_of(batch).flatten(), label_smoothing=label_smoothing)


def compute_loss(
    model: nn.Module, batch: Batch, loss: Loss | None, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Any]:
    """Run the model and return (loss, outputs).

    Without a `loss`, a model that takes `labels` and answers with `.loss`, as Hugging Face's do, decides by itself;
    any other gets the cross-entropy.
    """
    outputs = forward(model, batch, with_labels=loss is None)
    if loss is not None:
        return loss(outputs, batch), outputs
    own = getattr(outputs, "loss", None)
    if isinstance(own, Tensor):
        if label_smoothing:
            raise ConfigError(
                f"{type(model).__name__} computes its own loss, so label_smoothing={label_smoothing} has no effect."
                " Set it to 0, or pass a loss."
            )
        return own, outputs
    return cross_entropy(outputs, batch, label_smoothing=label_smoothing), outputs
