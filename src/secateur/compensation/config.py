"""The settings of compensation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch

from secateur.errors import ConfigError
from secateur.precision import check_precision, product_dtype


@dataclass(frozen=True, kw_only=True)
class ReconstructConfig:
    """How the weights between two cuts of the network are fitted together, by gradients, to what the dense one gives.

    Args:
        epochs: passes over the calibration batches, per segment; 0 leaves segments as they are.
        lr: the first step of Adam relative to the root mean square of a weight matrix; a tenth of it for vectors.
        max_readers: segments with more weights than that keep their closed form.
        end_epochs: passes in which all weights are fitted together at last, to the dense outputs; 0 for none.
        end_lr: as `lr`, of these passes.
        distance: between outputs, in these passes: "kl" for logits along the last axis, "mse" otherwise.
        precision: "bf16" computes products and convolutions in bfloat16 in all passes, in the last ones those of the
            dense network too; weights, their steps and errors stay in float32. "auto" does so where the device has
            units for it.
        seed: of the order of batches.
    """

    epochs: int = 10
    lr: float = 0.02
    max_readers: int = 8
    end_epochs: int = 0
    end_lr: float = 0.01
    distance: Literal["kl", "mse"] = "kl"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.distance not in ("kl", "mse"):
            raise ConfigError(f"distance={self.distance!r} is neither 'kl' nor 'mse'.")
        check_precision(self.precision)
        if self.end_epochs < 0 or not 0 < self.end_lr < 1:
            raise ConfigError(f"end_epochs={self.end_epochs} must not be negative, end_lr={self.end_lr} in (0, 1).")
        if self.epochs < 0 or self.max_readers < 1 or not 0 < self.lr < 1:
            raise ConfigError(
                f"epochs={self.epochs} must not be negative, max_readers={self.max_readers} at least 1,"
                f" lr={self.lr} in (0, 1)."
            )

    def dtype(self, device: torch.device) -> torch.dtype | None:
        """What passes compute in on a device; None for the types of the weights."""
        return product_dtype(self.precision, device)


@dataclass(frozen=True, kw_only=True)
class CompensateConfig:
    """How weights are solved for after pruning.

    Args:
        max_rows: positions per layer, over all batches, that its moments are taken over.
        reconstruct: how segments are fitted after the closed form; None, or false in a recipe, leaves it at that.
    """

    max_rows: int = 1 << 16
    reconstruct: ReconstructConfig | None = field(default_factory=ReconstructConfig)

    def __post_init__(self) -> None:
        if self.max_rows < 1:
            raise ConfigError(f"max_rows={self.max_rows} must be at least 1.")
