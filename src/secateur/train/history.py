"""What a training run tells: one record per epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One epoch. Validation is None without validation data; accuracy also where outputs are not (B, K) logits."""

    epoch: int  # from 1
    train_loss: float  # mean over the epoch's samples, while the weights moved
    val_loss: float | None
    val_accuracy: float | None
    lr: float  # of the last step
    seconds: float  # this epoch, validation included


@dataclass(frozen=True, kw_only=True)
class History:
    """All epochs of a run, those before a resume included. The weights are those of the last one, not of the best."""

    epochs: tuple[EpochRecord, ...]
    is_stopped_early: bool
    resumed_from: int  # epochs that a checkpoint had done already

    @property
    def last(self) -> EpochRecord:
        """The epoch that the weights come from."""
        return self.epochs[-1]

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        last = self.last
        val = "" if last.val_loss is None else f", val loss {last.val_loss:.4f}"
        accuracy = "" if last.val_accuracy is None else f", val accuracy {last.val_accuracy:.4f}"
        stop = ", stopped early" if self.is_stopped_early else ""
        return f"{last.epoch} epochs, train loss {last.train_loss:.4f}{val}{accuracy}{stop}"


def epochs_since_best(losses: list[float]) -> int:
    """Return how many epochs have passed since the lowest validation loss (the first of equals).

    >>> epochs_since_best([3.0, 1.0, 2.0, 1.0])
    2
    """
    return len(losses) - 1 - losses.index(min(losses)) if losses else 0
