"""How well a model classifies.

What the numbers mean: `accuracy` is the fraction of samples whose largest logit is at the label. `precision`, `recall`
and `f1` are macro averages: computed per class that occurs among labels or predictions, then averaged equally;
a class that is never predicted has precision 0. `loss` is the mean cross-entropy in nats, without label smoothing.
The model runs in eval mode without gradients; every sample counts once, and the batch size changes only the speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from secateur.data.batches import batches, forward, labels_of, logits_of
from secateur.errors import DataError
from secateur.measure.modes import device_of, eval_mode


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Classification quality on one data set. All but `loss` and `n_samples` are fractions in [0, 1]."""

    accuracy: float
    precision: float  # macro
    recall: float  # macro
    f1: float  # macro
    loss: float  # mean cross-entropy, nats
    n_samples: int

    def __str__(self) -> str:
        return (
            f"accuracy {self.accuracy:.4f}, macro precision {self.precision:.4f}, recall {self.recall:.4f},"
            f" F1 {self.f1:.4f}, loss {self.loss:.4f} on {self.n_samples} samples"
        )


def predict(
    model: nn.Module, data: Dataset[Any], *, batch_size: int = 256, device: torch.device | str | None = None
) -> tuple[Tensor, Tensor]:
    """Run the model over the data, in order and in eval mode; its training mode is restored.

    Args:
        data: items (x, y), or dicts of keyword inputs with "labels".
        device: where to run; None: where the model is. The model itself is not moved.
    Returns:
        logits (N, K) float32 and labels (N,), both on the CPU.
    Raises:
        DataError: the data is empty or does not fit the model.
    """
    where = device_of(model) if device is None else torch.device(device)
    logits, labels = [], []
    with eval_mode(model), torch.inference_mode():
        for batch in batches(data, batch_size=batch_size, device=where):
            try:
                outputs = forward(model, batch)
            except RuntimeError as err:
                shape = tuple(batch[0].shape) if not isinstance(batch, dict) else sorted(batch)
                raise DataError(f"{type(model).__name__} cannot take a batch {shape}: {err}") from err
            logits.append(logits_of(outputs).float().cpu())
            labels.append(labels_of(batch).cpu())
    # clones: tensors made in inference mode could not take part in autograd later
    return torch.cat(logits).clone(), torch.cat(labels).clone()


def evaluate(
    model: nn.Module, data: Dataset[Any], *, batch_size: int = 256, device: torch.device | str | None = None
) -> Metrics:
    """Measure accuracy, macro precision, macro recall, macro F1 and cross-entropy; see the top of this file.

    Args:
        model: gives logits (B, K).
        data, batch_size, device: as for `predict`.
    Raises:
        DataError: the data is empty, does not fit, or has labels beyond the model's classes.

    >>> from secateur.data import ArrayDataset
    >>> data = ArrayDataset(torch.eye(2), torch.tensor([0, 0]))
    >>> evaluate(nn.Identity(), data).accuracy
    0.5
    """
    return score_logits(*predict(model, data, batch_size=batch_size, device=device))


def score_logits(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute `Metrics` from logits (N, K) and labels (N,)."""
    from sklearn.metrics import accuracy_score, precision_recall_fscore_support

    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise DataError(
            f"Logits {tuple(logits.shape)} and labels {tuple(labels.shape)} do not fit."
            " A classifier gives (N, K) for labels (N,)."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise DataError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}, but the model has {logits.shape[1]} classes."
        )
    guesses = logits.argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels.numpy(), guesses.numpy(), average="macro", zero_division=0
    )
    return Metrics(
        accuracy=float(accuracy_score(labels.numpy(), guesses.numpy())),
        precision=float(precision),
        recall=float(recall),
        f1=float(f1),
        loss=float(F.cross_entropy(logits.double(), labels)),
        n_samples=len(labels),
    )


def agreement(a: Tensor, b: Tensor) -> float:
    """Return the fraction of samples on which two models choose the same class.

    Args:
        a, b: logits (N, K) of the two, for the same samples in the same order.

    >>> agreement(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([[9.0, 1.0], [1.0, 0.0]]))
    0.5
    """
    if a.shape != b.shape or a.ndim != 2 or len(a) == 0:
        raise DataError(f"Logits {tuple(a.shape)} and {tuple(b.shape)} cannot be compared. Both must be (N, K).")
    return float((a.argmax(1) == b.argmax(1)).double().mean())
