"""KLDA: deep clustering of texts or numbers, as a scikit-learn estimator."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

from secateur.edits import Edits
from secateur.errors import ConfigError, DataError, FileError
from secateur.models.klda.features import Columns, NumberFeatures, TextFeatures
from secateur.models.klda.mixture import choose_mixture, start_from_classes_
from secateur.models.klda.network import COVARIANCES, KLDANet, MixtureHead, source_of
from secateur.models.klda.pruning import KLDABudget, prune
from secateur.models.klda.storing import Stored, read_folder, write_folder
from secateur.models.klda.training import (
    OBJECTIVES,
    Rows,
    gaussian_loss,
    latent_points,
    logits,
    multinomial_loss,
    pretrain_,
)
from secateur.train import TrainConfig, fit_

TEXT_FEATURES = ("multi_hot", "tfidf")


class KLDA(ClusterMixin, BaseEstimator):
    """Clustering by Kullback-Leibler divergence in the latent space of an encoder; a Gaussian mixture is its density.

    Three stages. (1) The encoder learns by reconstruction: a linear decoder tells the words of the whole document from
    the latent point of a document of which a part is dropped. (2) A Gaussian mixture is fitted to the latent points, by
    EM; where `n_clusters` names several numbers, the one with the least BIC is taken. (3) Encoder and mixture learn
    together: by the divergence between soft assignments and their sharpened form ("dec"), by the evidence bound of a
    variational autoencoder ("elbo"), or, where `fit` is given labels, by the cross-entropy of the posterior.

    Args:
        n_clusters: components of the mixture, or several numbers to choose from by BIC. With labels, the classes count.
        hidden: widths of the encoder's hidden layers.
        latent_dim: width of the latent space.
        features: "multi_hot" or "tfidf" of texts; "precomputed": columns of numbers, which are standardised.
        analyzer: of texts: "word", "char" (characters and pairs, for Chinese) or "jieba" (where it is installed).
        stop_words, max_features, min_df: as scikit-learn's vectorizers take them.
        covariance: "full", "diag" or "tied".
        objective: "dec" or "elbo"; None leaves out the third stage.
        denoising: part of the inputs that is dropped in reconstruction, in [0, 1).
        pretrain_epochs, epochs: of reconstruction, and of the third stage.
        batch_size, lr: samples per step; learning rate at its top, of reconstruction and of learning from labels.
        finetune_lr: the same of "dec" and "elbo".
        n_init: starts of EM.
        random_state: seed, `RandomState` or None. The global random states are left as they are.

    Attributes:
        network_: `KLDANet`, from columns to logits. It is pruned, factorized and quantized as any network.
        features_: from samples to columns.
        labels_: cluster (or class) of each training sample.
        n_clusters_: components of the mixture.
        bic_: by number of components, BIC of the mixture on the latent points.
        classes_: where `fit` was given labels.

    >>> from secateur.models.klda import fruit_baskets
    >>> texts, kinds = fruit_baskets()
    >>> model = KLDA(3, latent_dim=2, pretrain_epochs=40, epochs=5, random_state=0).fit(texts)
    >>> model.predict_proba(texts[:2]).shape
    (2, 3)
    """

    def __init__(
        self,
        n_clusters: int | Sequence[int] = 8,
        *,
        hidden: Sequence[int] = (64, 64),
        latent_dim: int = 10,
        features: str = "multi_hot",
        analyzer: str = "word",
        stop_words: str | Sequence[str] | None = None,
        max_features: int | None = 2000,
        min_df: int = 1,
        covariance: str = "full",
        objective: str | None = "dec",
        denoising: float = 0.5,
        pretrain_epochs: int = 20,
        epochs: int = 5,
        batch_size: int = 128,
        lr: float = 5e-3,
        finetune_lr: float = 1e-4,
        n_init: int = 5,
        random_state: Any = None,
    ) -> None:
        self.n_clusters = n_clusters
        self.hidden = hidden
        self.latent_dim = latent_dim
        self.features = features
        self.analyzer = analyzer
        self.stop_words = stop_words
        self.max_features = max_features
        self.min_df = min_df
        self.covariance = covariance
        self.objective = objective
        self.denoising = denoising
        self.pretrain_epochs = pretrain_epochs
        self.epochs = epochs
        self.batch_size = batch_size
        self.lr = lr
        self.finetune_lr = finetune_lr
        self.n_init = n_init
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn from texts (a list of strings) or numbers (N, F); with labels y, as a classifier.

        Raises:
            ConfigError: a parameter is out of range.
            DataError: the texts give no vocabulary.
            TrainError: numbers stopped being finite.
        """
        self._check()
        for name in ("classes_", "bic_"):  # of an earlier fit, with labels or without
            self.__dict__.pop(name, None)
        columns = self._learn_columns(X)
        classes, codes = (None, None) if y is None else _encoded(y, len(X))
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._fit_columns(columns, classes, codes, seed)
        return self

    def _fit_columns(self, x: Columns, classes: NDArray[Any] | None, codes: Tensor | None, seed: int) -> None:
        counts = self._counts() if classes is None else [len(classes)]
        net = KLDANet(x.shape[1], counts[0], tuple(self.hidden), self.latent_dim, self.covariance)
        loss = gaussian_loss if self.features == "precomputed" else multinomial_loss
        first = self.train_config(self.pretrain_epochs, seed)
        decoder = pretrain_(net, x, loss, denoising=self.denoising, config=first)
        net.cpu()
        z = latent_points(net, x)
        if codes is None:
            mixture, self.bic_ = choose_mixture(z, counts, self.covariance, self.n_init, seed)
            net.head = MixtureHead(mixture.n_components, self.latent_dim, self.covariance)
            net.head.set_mixture_(mixture.weights_, mixture.means_, mixture.precisions_cholesky_)
        else:
            start_from_classes_(net.head, z, codes)
        later = self.train_config(self.epochs, seed)
        if codes is not None:
            fit_(net, Rows(x, codes), config=later, progress=False)
        elif self.objective is not None:
            later = replace(later, lr=self.finetune_lr)
            OBJECTIVES[self.objective](net, decoder, x, loss, self.denoising, later)
        self.network_, self.edits_ = net, Edits()
        self.source_ = source_of(net)
        if classes is not None:
            self.classes_ = classes
        self.settle_(x)

    def settle_(self, x: Columns) -> Self:
        """Note what follows from a network that is trained: its mode, its components, the labels of these columns."""
        self.network_.cpu().eval()
        self.n_clusters_ = len(self.network_.head.means)
        self.labels_ = self._names(logits(self.network_, x))
        return self

    def _names(self, found: Tensor) -> NDArray[Any]:
        best: NDArray[Any] = found.argmax(1).numpy()
        return self.classes_[best] if hasattr(self, "classes_") else best

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable cluster of each sample, or its class where `fit` was given labels."""
        return self._names(self._logits(X))

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Return the posterior of the components, (N, K) float64; rows sum to 1."""
        proba: NDArray[Any] = self._logits(X).double().softmax(1).numpy()
        return proba

    def score_samples(self, X: Any) -> NDArray[Any]:
        """Return the log density of each sample's latent point, in nats."""
        found: NDArray[Any] = self._logits(X).double().logsumexp(1).numpy()
        return found

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log density of the latent points, in nats; the accuracy of a classifier where y is given."""
        if y is not None and hasattr(self, "classes_"):
            return float(np.mean(self.predict(X) == np.asarray(y)))
        return float(self.score_samples(X).mean())

    def embed(self, X: Any) -> NDArray[Any]:
        """Return the latent points, (N, latent_dim) float32."""
        return latent_points(self.network_, self.columns(X))

    def columns(self, X: Any) -> Columns:
        """Return what the encoder reads for these samples: (N, F) float32, sparse for texts."""
        check_is_fitted(self, "network_")
        if self.features == "precomputed":
            X = validate_data(self, X, reset=False)
        columns: Columns = self.features_.transform(X)
        return columns

    def _logits(self, X: Any) -> Tensor:
        """In float64, so that what a sample gets doesn't depend on its batch."""
        columns = self.columns(X)
        return logits(copy.deepcopy(self.network_).double(), columns)

    def prune(self, X: Any, **budget: Any) -> KLDA:
        """Return a smaller copy that assigns nearly alike: fewer words, hidden units and components.

        Each goes by the Kullback-Leibler divergence between the assignments with and without it: columns exactly, one
        by one (`secateur.vocabulary`); hidden units by the criterion "kl" of the engine that prunes any network;
        components by `component_scores`. The vocabulary shrinks with the columns, so the copy takes the same samples.
        Then the copy is fitted to the assignments of this model on X; no labels are used.

        Args:
            X: samples, as for `fit`; best those.
            budget: the fields of `KLDABudget`.

        >>> from secateur.models.klda import fruit_baskets
        >>> texts, _ = fruit_baskets()
        >>> model = KLDA(3, latent_dim=2, pretrain_epochs=10, epochs=1, random_state=0).fit(texts)
        >>> small = model.prune(texts, features=0.5, hidden=0.5)
        >>> small.features_.size, small.network_.encoder[0]
        (4, Linear(in_features=4, out_features=32, bias=True))
        """
        check_is_fitted(self, "network_")
        return prune(self, X, KLDABudget(**budget))

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> Path:
        """Save as a folder: `klda.json`, and the network beside it as `secateur.save` writes it. No pickle.

        Training labels and a `random_state` that is no number are not kept.
        Raises:
            FileError: the folder exists, or can't be written.
        """
        check_is_fitted(self, "network_")
        stored = Stored(
            settings=self.get_params(),  # type: ignore[no-untyped-call]
            features=self.features_,
            classes=tuple(self.classes_.tolist()) if hasattr(self, "classes_") else None,
            bic={str(k): value for k, value in getattr(self, "bic_", {}).items()},
            n_features_in=getattr(self, "n_features_in_", None),
        )
        inputs = torch.zeros(2, self.features_.size)
        return write_folder(
            folder, stored, self.network_, self.edits_, source=self.source_, inputs=inputs, overwrite=overwrite
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Self:
        """Load what `save` wrote.

        Raises:
            FileError: the folder is foreign or damaged.
        """
        stored, net, edits, source = read_folder(folder)
        try:
            model = cls(**stored.settings)
        except TypeError as error:
            raise FileError(f"'{folder}' has settings that KLDA does not take: {error}.") from error
        model.network_, model.edits_, model.source_ = net, edits, source
        model.features_ = stored.features
        model.n_clusters_ = len(net.head.means)
        model.bic_ = {int(k): value for k, value in stored.bic.items()}
        if stored.classes is not None:
            model.classes_ = np.array(stored.classes)
        if stored.n_features_in is not None:
            model.__dict__["n_features_in_"] = stored.n_features_in
        return model

    def _learn_columns(self, X: Any) -> Columns:
        if self.features == "precomputed":
            X = validate_data(self, X, ensure_min_samples=2)
            self.features_: NumberFeatures | TextFeatures = NumberFeatures.fit(X)
        else:
            self.features_ = TextFeatures.fit(
                X,
                kind=self.features,
                analyzer=self.analyzer,
                stop_words=self.stop_words,
                max_features=self.max_features,
                min_df=self.min_df,
            )
        return self.features_.transform(X)

    def train_config(self, epochs: int, seed: int) -> TrainConfig:
        """Return the settings of a stage of training."""
        return TrainConfig(epochs=epochs, batch_size=self.batch_size, lr=self.lr, weight_decay=0.0, seed=seed)

    def _counts(self) -> list[int]:
        """Numbers of components to try."""
        return sorted({self.n_clusters} if isinstance(self.n_clusters, int | np.integer) else set(self.n_clusters))

    def _check(self) -> None:
        known = {
            "features": (*TEXT_FEATURES, "precomputed"),
            "covariance": COVARIANCES,
            "objective": (*OBJECTIVES, None),
        }
        for name, values in known.items():
            if getattr(self, name) not in values:
                raise ConfigError(f"{name}={getattr(self, name)!r} is none of {', '.join(map(repr, values))}.")
        if not self._counts() or self._counts()[0] < 1:
            raise ConfigError(f"n_clusters={self.n_clusters!r} must be a positive number, or several.")
        if not 0 <= self.denoising < 1:
            raise ConfigError(
                f"denoising={self.denoising} is outside [0, 1). It is the part of the input that is dropped."
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[no-untyped-call]
        tags.input_tags.string = self.features != "precomputed"
        tags.input_tags.two_d_array = self.features == "precomputed"
        return tags


def _encoded(y: Any, n_samples: int) -> tuple[NDArray[Any], Tensor]:
    labels = np.asarray(y)
    if labels.ndim != 1 or len(labels) != n_samples:
        raise DataError(f"y has shape {labels.shape} for {n_samples} samples. Pass one label per sample.")
    check_classification_targets(labels)
    classes, codes = np.unique(labels, return_inverse=True)
    return classes, torch.from_numpy(codes).long()
