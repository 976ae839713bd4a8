"""How far outputs are from those of the dense network, without labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["kl", "mse"]


def distance(kind: Kind, dense: Tensor, other: Tensor) -> Tensor:
    """The mean over rows of the last axis, in the dtype given; gradients flow.

    "kl": KL(softmax(dense) || softmax(other)) in nats, for logits. "mse": squared difference over the dense variance.
    """
    if kind == "mse":
        return (dense - other).square().mean() / dense.var(correction=0).clamp(min=torch.finfo(dense.dtype).tiny)
    log_p, log_q = dense.log_softmax(-1), other.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1).mean()


@dataclass(frozen=True)
class Distance:
    """A distance between outputs (see `distance`), and what tells of its curvature.

    >>> kl = Distance("kl", torch.Generator())
    >>> kl(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]))
    0.0
    """

    kind: Kind
    generator: torch.Generator

    def __call__(self, dense: Tensor, other: Tensor) -> float:
        return max(0.0, float(distance(self.kind, dense.double(), other.double())))

    def cotangent(self, out: Tensor) -> Tensor:
        """A random vector v of the shape of `out` with E[v v^T] the distance's second derivative, up to its scale.

        For "kl" the gradient of -log p(label), the label drawn from the model's own prediction: the Fisher matrix.
        """
        out = out.detach()
        if self.kind == "mse":
            return torch.randn(out.shape, generator=self.generator).to(out)
        p = out.double().softmax(-1).cpu()
        label = torch.multinomial(p.flatten(0, -2), 1, generator=self.generator).view(*p.shape[:-1], 1)
        return (p - torch.zeros_like(p).scatter_(-1, label, 1.0)).to(out)
