"""The network of KLDA: an encoder and a Gaussian mixture over its latent space, as one module that gives logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError
from secateur.models.catalog import MODELS

COVARIANCES = ("full", "diag", "tied")


class MixtureHead(nn.Module):
    """logits[b, k] = log pi_k + log N(z_b; mean_k, S_k), the joint density of a point and its component.

    Softmax of the logits is the posterior of the components, and their logsumexp the density of z. With the inverse
    Cholesky factor S_k^-1 = W_k W_k^T, log N = log|W_k| - |(z - mean_k) W_k|^2 / 2 - L / 2 log 2 pi. W_k has
    exp(log_scale) on its diagonal and, unless the covariance is diagonal, `mixing` above it.

    Args:
        n_components: K.
        latent_dim: L.
        covariance: "full" (one per component), "tied" (one for all) or "diag".
    Takes (B, L), gives (B, K).

    >>> MixtureHead(2, 3)(torch.zeros(1, 3)).exp().sum()  # two standard normals at 0, each with weight 1/2
    tensor(0.0635, grad_fn=<SumBackward0>)
    """

    upper: Tensor

    def __init__(self, n_components: int, latent_dim: int, covariance: str = "full") -> None:
        super().__init__()
        if covariance not in COVARIANCES:
            raise ConfigError(f"covariance={covariance!r} is none of {', '.join(COVARIANCES)}.")
        shape = (latent_dim,) if covariance == "tied" else (n_components, latent_dim)
        self.means = nn.Parameter(torch.zeros(n_components, latent_dim))
        self.log_weights = nn.Parameter(torch.full((n_components,), -math.log(n_components)))
        self.log_scale = nn.Parameter(torch.zeros(shape))
        self.mixing = nn.Parameter(torch.zeros(*shape, latent_dim)) if covariance != "diag" else None
        self.register_buffer("upper", torch.ones(latent_dim, latent_dim).triu(1), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        from_means = z - self.means.unsqueeze(1)  # (K, B, L)
        scaled = from_means * self.log_scale.exp().unsqueeze(-2)
        if self.mixing is not None:
            scaled = scaled + from_means @ (self.mixing * self.upper)
        log_density: Tensor = self._log_heights() - scaled.square().sum(-1).t() / 2
        return log_density

    def expected(self, mean: Tensor, variance: Tensor) -> Tensor:
        """Return the mean of `forward` over z ~ N(mean, diag(variance)): logits - sum_ij variance_i W_kij^2 / 2."""
        spread = (2 * self.log_scale).exp()
        if self.mixing is not None:
            spread = spread + (self.mixing * self.upper).square().sum(-1)
        traces = variance @ (spread.t() if spread.dim() == 2 else spread.unsqueeze(1))  # (B, K), or (B, 1) where tied
        out: Tensor = self(mean) - traces / 2
        return out

    def _log_heights(self) -> Tensor:
        """(K,) log density at the means, times the weight."""
        per_axis = self.log_scale - math.log(2 * math.pi) / 2
        return self.log_weights.log_softmax(0) + per_axis.sum(-1)

    @torch.no_grad()
    def set_mixture_(self, weights: Any, means: Any, factors: Any) -> None:
        """Take over a mixture: weights (K,), means (K, L), and W as scikit-learn's `precisions_cholesky_` has it.

        Where `factors` lack an axis or two of that, they are the diagonal of every W.
        """
        given = torch.as_tensor(factors)
        is_diagonal = given.dim() <= self.log_scale.dim()
        self.means.copy_(torch.as_tensor(means))
        self.log_weights.copy_(torch.as_tensor(weights).log())
        self.log_scale.copy_((given if is_diagonal else given.diagonal(dim1=-2, dim2=-1)).log())
        if self.mixing is not None:
            self.mixing.copy_(torch.zeros_like(self.mixing) if is_diagonal else given.triu(1))


class KLDANet(nn.Module):
    """Linear and ReLU layers to a latent space, then a `MixtureHead`.

    Args:
        in_features: numbers per sample: for texts, the size of the vocabulary.
        n_clusters: components of the mixture.
        hidden: widths of the encoder's hidden layers.
        latent_dim: width of the latent space.
        covariance: of the mixture.
    Takes (B, in_features), gives (B, n_clusters) logits: log of the joint density of latent point and component.
    """

    def __init__(
        self,
        in_features: int,
        n_clusters: int,
        hidden: Sequence[int] = (64, 64),
        latent_dim: int = 10,
        covariance: str = "full",
    ) -> None:
        super().__init__()
        widths = (in_features, *hidden, latent_dim)
        if min(*widths, n_clusters) < 1:
            raise ConfigError(f"in_features, hidden, latent_dim = {widths}, n_clusters={n_clusters}: must be positive.")
        layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
        self.encoder = nn.Sequential(*layers[:-1])
        self.head = MixtureHead(n_clusters, latent_dim, covariance)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(x))
        return out


@MODELS.register("klda")
def klda(
    in_features: int,
    n_classes: int = 10,
    hidden: Sequence[int] = (64, 64),
    latent_dim: int = 10,
    covariance: str = "full",
) -> KLDANet:
    """Build the network of a `KLDA` with fresh weights.

    >>> klda(30, n_classes=4).eval()(torch.zeros(2, 30)).shape
    torch.Size([2, 4])
    """
    return KLDANet(in_features, n_classes, hidden, latent_dim, covariance)


def source_of(net: KLDANet) -> str:
    """Return the source that builds a network of these widths (see `secateur.sources`).

    >>> source_of(KLDANet(30, 4, hidden=(8,), latent_dim=2))
    "builtin:klda?in_features=30&n_classes=4&hidden=(8,)&latent_dim=2&covariance='full'"
    """
    first, *hidden = [layer for layer in net.encoder if isinstance(layer, nn.Linear)]
    widths = tuple(layer.in_features for layer in hidden)
    n_clusters, latent_dim = net.head.means.shape
    tied, diagonal = net.head.log_scale.dim() == 1, net.head.mixing is None
    covariance = "tied" if tied else "diag" if diagonal else "full"
    return (
        f"builtin:klda?in_features={first.in_features}&n_classes={n_clusters}&hidden={widths}"
        f"&latent_dim={latent_dim}&covariance='{covariance}'"
    ).replace(" ", "")
