"""Coordinates for fitting weights: along the principal axes of what their layers read.

Inputs of a layer are correlated, so along some directions of a weight the error is steep and along others flat. Adam
scales its steps per coordinate; along principal axes these scales are those of the directions themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from secateur.compensation.moments import Moments
from secateur.compensation.readers import Reader
from secateur.tensors import wide_dtype

MOST_INPUTS = 2048
"""Wider layers keep their own coordinates: finding axes takes the cube of the width, and turning to them its square."""


@dataclass(frozen=True)
class Basis:
    """Turns a weight to the principal axes of its layer's inputs and back.

    coordinates[g, o, j] = sum_k W[g, o, k] * axes[g, k, j]

    Attributes:
        reader: the layer.
        axes: (g, k, k), orthonormal columns, of the weight's dtype, float32 at least.
    """

    reader: Reader
    axes: Tensor

    @classmethod
    def of(cls, reader: Reader, moments: Moments, weight: Tensor) -> Self | None:
        """The axes of the second moments about zero; None for a layer wider than `MOST_INPUTS`."""
        if moments.xx.shape[-1] > MOST_INPUTS:
            return None
        return cls(reader, torch.linalg.eigh(moments.xx).eigenvectors.to(wide_dtype(weight.dtype)))

    def coordinates(self, weight: Tensor) -> Tensor:
        """(g, o, k), of the weight's dtype, float32 at least; detached."""
        return (self.reader.matrix(weight) @ self.axes.double()).to(self.axes.dtype)

    def weight(self, coordinates: Tensor, like: Tensor) -> Tensor:
        """Undo `coordinates`: the weight in the shape and dtype of another. Gradients flow."""
        return self.reader.weight_of(coordinates @ self.axes.mT, like)
