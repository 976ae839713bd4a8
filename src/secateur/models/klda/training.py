"""How the network of KLDA learns: reconstruction, then an objective. All of it runs on `secateur.train.fit_`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from secateur.data.batches import labels_of
from secateur.models.klda.features import Columns
from secateur.models.klda.network import KLDANet
from secateur.registry import Registry
from secateur.train import TrainConfig, fit_
from secateur.train.loop import Callback

Reconstruction = Callable[[Tensor, Tensor], Tensor]
MAX_LOG_VARIANCE = 10.0


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """Rows of a matrix, dense or CSR, with targets; without targets, each row is its own."""

    def __init__(self, x: Columns, targets: Tensor | None = None) -> None:
        self.x = x
        self.targets = targets

    def __len__(self) -> int:
        return int(self.x.shape[0])

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        x = dense(self.x[list(indices)])
        targets = x if self.targets is None else self.targets[torch.as_tensor(indices)]
        return list(zip(x.unbind(), targets.unbind(), strict=True))

    def batches(self, batch_size: int = 512) -> Iterator[Tensor]:
        """All rows in order, as dense batches."""
        for at in range(0, len(self), batch_size):
            yield dense(self.x[at : at + batch_size])


def dense(x: Columns) -> Tensor:
    """Some rows as a float32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(x if isinstance(x, np.ndarray) else x.toarray(), dtype=np.float32))


def multinomial_loss(outputs: Tensor, x: Tensor) -> Tensor:
    """Mean over samples of -sum_w x_w log softmax(outputs)_w: nats for the words of a document, in any order."""
    return -(x * outputs.log_softmax(1)).sum(1).mean()


def gaussian_loss(outputs: Tensor, x: Tensor) -> Tensor:
    """Mean over samples of |outputs - x|^2 / 2, in nats up to a constant."""
    return (outputs - x).square().sum(1).mean() / 2


class Autoencoder(nn.Module):
    """A linear decoder on the latent point of an input of which a part is dropped.

    Differs from Xie et al.: their autoencoders mirror the encoder, and each layer is trained by itself first.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, denoising: float) -> None:
        super().__init__()
        self.drop, self.encoder, self.decoder = nn.Dropout(denoising), encoder, decoder

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.encoder(self.drop(x)))
        return out


def pretrain_(net: KLDANet, x: Columns, loss: Reconstruction, *, denoising: float, config: TrainConfig) -> nn.Linear:
    """Train the encoder to give latent points that the whole input can be told from. Returns the decoder."""
    decoder = nn.Linear(net.head.means.shape[1], x.shape[1])
    model = Autoencoder(net.encoder, decoder, denoising)
    fit_(model, Rows(x), config=config, loss=lambda out, batch: loss(out, labels_of(batch)), progress=False)
    return decoder


def sharpened(q: Tensor) -> Tensor:
    """Return the target of assignments q (N, K): p_ik = q_ik^2 / f_k, f_k = sum_i q_ik, each row scaled to sum 1.

    Source: Xie et al., "Unsupervised Deep Embedding for Clustering Analysis", ICML 2016, section 3.1.2.

    >>> sharpened(torch.tensor([[0.8, 0.2], [0.2, 0.8]]))
    tensor([[0.9412, 0.0588],
            [0.0588, 0.9412]])
    """
    weight = q.square() / q.sum(0).clamp(min=1e-12)
    return weight / weight.sum(1, keepdim=True)


@torch.no_grad()
def logits(net: nn.Module, x: Columns) -> Tensor:
    """(N, K) on the CPU, in eval mode and in the dtype of the network."""
    net.eval()
    like = next(net.parameters())
    return torch.cat([net(batch.to(like)).cpu() for batch in Rows(x).batches()])


@torch.no_grad()
def latent_points(net: KLDANet, x: Columns) -> NDArray[Any]:
    """(N, latent_dim) float32."""
    found: NDArray[Any] = torch.cat([net.encoder(batch) for batch in Rows(x).batches()]).numpy()
    return found


def divergence(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over samples of KL(target || softmax(outputs)), in nats."""
    return F.kl_div(outputs.log_softmax(1), targets, reduction="batchmean")


class _Sharpen(Callback):
    """New targets after each epoch, from the assignments as they are then."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def on_epoch(self, model: nn.Module, record: Any) -> None:
        self.rows.targets = sharpened(logits(model, self.rows.x).softmax(1))


class Variational(nn.Module):
    """Gives what the decoder makes of one z drawn per input, and the mean of KL(q(z, k | x) || p(z, k))."""

    def __init__(self, net: KLDANet, decoder: nn.Module, denoising: float) -> None:
        super().__init__()
        latent_dim = net.head.means.shape[1]
        self.net, self.decoder, self.drop = net, decoder, nn.Dropout(denoising)
        self.log_variance = nn.Linear(latent_dim, latent_dim)
        nn.init.zeros_(self.log_variance.weight)
        nn.init.constant_(self.log_variance.bias, -2.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean = self.net.encoder(self.drop(x))
        log_variance = self.log_variance(mean).clamp(max=MAX_LOG_VARIANCE)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean) * self.training
        entropy = (log_variance + np.log(2 * np.pi) + 1).sum(1) / 2
        prior = self.net.head.expected(mean, log_variance.exp()).logsumexp(1)
        return self.decoder(z), (-entropy - prior).mean()


Objective = Callable[[KLDANet, nn.Linear, Columns, Reconstruction, float, TrainConfig], None]
OBJECTIVES: Registry[str, Objective] = Registry("objective")


@OBJECTIVES.register("dec")
def fit_assignments_(
    net: KLDANet, decoder: nn.Linear, x: Columns, loss: Reconstruction, denoising: float, config: TrainConfig
) -> None:
    """Move encoder and mixture so that soft assignments approach their own sharpened form.

    The loss is KL(p || q), p = `sharpened`(q) renewed after each epoch.
    Source: Xie et al., ICML 2016, section 3.1. Differs: q is the posterior of a Gaussian mixture, whose covariances
    learn too, in place of a Student-t kernel around centroids.
    """
    rows = Rows(x, sharpened(logits(net, x).softmax(1)))
    fit_(
        net,
        rows,
        config=config,
        loss=lambda out, batch: divergence(out, labels_of(batch)),
        progress=False,
        callbacks=[_Sharpen(rows)],
    )


@OBJECTIVES.register("elbo")
def fit_bound_(
    net: KLDANet, decoder: nn.Linear, x: Columns, loss: Reconstruction, denoising: float, config: TrainConfig
) -> None:
    """Maximise the evidence lower bound of a variational autoencoder whose prior is the mixture.

    -ELBO = reconstruction loss at a sampled z + E_q(z|x)[log q(z|x)] - log sum_k exp E_q(z|x)[log pi_k N(z; k)].
    Source: Jiang et al., "Variational Deep Embedding", IJCAI 2017, section 3.2. Differs: the posterior of the
    components is the one that maximises the bound, which gives the logsumexp, in place of p(k | sampled z); covariances
    may be full.
    """
    model = Variational(net, decoder, denoising)
    fit_(model, Rows(x), config=config, loss=lambda out, batch: loss(out[0], labels_of(batch)) + out[1], progress=False)
