"""KLDA as a subject: no label is seen by training, pruning or fine-tuning; scores alone compare with classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from sklearn.base import clone
from torch import Tensor, nn

from secateur.compare.folds import Cut, Indices
from secateur.compare.subjects import SUBJECTS, Task, Texts, scaled
from secateur.data import ArrayDataset, DataSplits
from secateur.measure import predict, score_clusters
from secateur.models import KLDA, KLDANet
from secateur.models.klda.features import TextFeatures
from secateur.models.klda.training import dense as as_tensor
from secateur.steps import Finetune
from secateur.steps.finetune import Distill
from secateur.train import TrainConfig


@SUBJECTS.register("klda")
@dataclass(frozen=True, kw_only=True)
class KLDASubject(Texts):
    """`KLDA` on texts, with as many clusters as there are classes.

    Its network is pruned and quantized by the steps that any network takes. Where those want labels, they get the
    clusters that the dense network assigns, and fine-tuning follows its posteriors: KL(p dense || p small).
    """

    measure: ClassVar[str] = "nmi"

    hidden: tuple[int, ...] = (64, 64)
    latent_dim: int = 3
    features: str = "multi_hot"  # or tfidf
    covariance: str = "diag"  # full, diag or tied
    max_words: int = 2000
    pretrain_epochs: int = 40
    epochs: int = 5
    finetune_epochs: int = 10
    batch_size: int = 16

    def task(self, cut: Cut, seed: int) -> Task:
        """See `Subject`."""
        texts, classes, names = self.read()
        seen = [texts[i] for i in cut.train]
        model = KLDA(
            len(names),
            hidden=self.hidden,
            latent_dim=self.latent_dim,
            features=self.features,
            covariance=self.covariance,
            max_features=self.max_words,
            pretrain_epochs=self.pretrain_epochs,
            epochs=self.epochs,
            batch_size=self.batch_size,
            random_state=seed,
        )
        read = TextFeatures.fit(
            seen,
            kind=self.features,
            analyzer=model.analyzer,
            stop_words=model.stop_words,
            max_features=self.max_words,
            min_df=model.min_df,
        )
        tuning = TrainConfig(epochs=self.finetune_epochs, batch_size=self.batch_size, weight_decay=0.0, seed=seed)
        return Clustering(
            model=model,
            n_clusters=len(names),
            texts=seen,
            columns=as_tensor(read.transform(texts)),
            classes=classes,
            cut=cut,
            finetune=Finetune(train=tuning, distill=Distill(weight=1.0, temperature=1.0)),
        )


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """A task of a clusterer."""

    model: KLDA  # not fitted
    n_clusters: int
    texts: list[str]  # of the training part
    columns: Tensor  # (N, words) of all texts, by the vocabulary of the training part
    classes: Tensor  # (N,)
    cut: Cut
    finetune: Finetune

    def build(self, scale: float) -> nn.Module:
        """The network with fresh weights."""
        m = self._narrowed(scale)
        return KLDANet(self.columns.shape[1], self.n_clusters, m.hidden, m.latent_dim, m.covariance)

    def fit(self, scale: float) -> nn.Module:
        """Cluster the texts of the training part."""
        return self._narrowed(scale).fit(self.texts).network_

    def _narrowed(self, scale: float) -> KLDA:
        made: KLDA = clone(self.model)
        made.hidden = tuple(scaled(width, scale) for width in self.model.hidden)
        return made

    def splits(self, dense: nn.Module) -> DataSplits:
        """The columns, with the clusters that the dense network assigns as labels."""
        with torch.no_grad():
            clusters = dense(self.columns).argmax(1)
        train, val, test = (ArrayDataset(self.columns[i], clusters[i]) for i in self._parts().values())
        return DataSplits(train, val, test, tuple(map(str, range(self.n_clusters))))

    def score(self, model: nn.Module, part: str) -> dict[str, float]:
        """Adjusted Rand index, NMI and purity of the clusters, against the classes; silhouette and log-likelihood."""
        at = self._parts()[part]
        columns = self.columns[at]
        logits, classes = predict(model, ArrayDataset(columns, self.classes[at]))
        clusters, densities = logits.argmax(1), logits.logsumexp(1)
        found = score_clusters(classes, clusters, points=columns, log_densities=densities)
        names = ("adjusted_rand", "nmi", "purity", "silhouette", "log_likelihood")
        return {name: value for name in names if (value := getattr(found, name)) is not None}

    def _parts(self) -> dict[str, Indices]:
        return {"train": self.cut.train, "val": self.cut.val, "test": self.cut.test}
