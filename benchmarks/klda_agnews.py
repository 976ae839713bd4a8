"""Clusters of AG News: KLDA beside k-means and Gaussian mixtures on the same features, and KLDA pruned to half.

Needs the texts as a .csv or .csv.gz with columns text and label (`ag_news_test7600.csv.gz`: 7,600 short news, four
classes). Per seed, 6,000 texts are drawn to fit on; the other 1,600 are only assigned. Labels are used for the scores
alone: nothing is fitted to them. All methods read the same columns: tf-idf or multi-hot of the 2,000 commonest words,
without scikit-learn's English stop words (`--stop-words none` keeps them). Mixtures and k-means get them as they are
and as LSA of several widths, which is how they are commonly used; KLDA gets them as they are. KLDA's settings are its
defaults; those were found on these texts by trying (see docs/klda.md), so the baselines' best width is the fair one to
compare with.

Other texts can be given in their place. Chinese titles (`thucnews_dev.csv.gz`: 10,000, ten classes) are read as
characters and pairs of them, and nothing was tuned on them:

    klda_agnews.py thucnews_dev.csv.gz --analyzer char --stop-words none --features tfidf --objectives dec --no-prune
        --lsa-widths 10 50 --output klda_titles
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import normalize

import secateur
from rows import machine, write_rows
from secateur.data import read_texts
from secateur.measure import score_clusters
from secateur.models import KLDA
from secateur.models.klda.features import TextFeatures

COLUMNS = (
    *("features", "method", "seed", "nmi", "nmi held out", "adjusted rand", "purity", "words kept", "encoder kept"),
    "seconds",
)
MAX_WORDS = 2000
LSA_WIDTHS = (10, 20, 50, 100)
PRUNED = {"kl": "kl", "kl_fisher": "kl_fisher", "frequency": "l2", "random": "random"}  # word score: unit criterion
HALF = {"features": 0.5, "hidden": 0.5}


@dataclass
class Run:
    """One seed on one kind of features; rows are written as they come."""

    features: str
    analyzer: str
    stop_words: str | None
    seed: int
    fit: tuple[list[str], NDArray[Any]]
    held: tuple[list[str], NDArray[Any]]
    output: str
    rows: list[dict[str, Any]]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> dict[str, Any]:
        """How texts are read, by KLDA and by the baselines."""
        return {"analyzer": self.analyzer, "stop_words": self.stop_words, "max_features": MAX_WORDS}

    def add(self, method: str, found: Any, held: Any, seconds: float, **kept: float) -> None:
        """Score the clusters of both sets of texts."""
        quality, beyond = score_clusters(self.fit[1], found), score_clusters(self.held[1], held)
        self.rows.append(
            {
                "features": self.features,
                "method": method,
                "seed": self.seed,
                "nmi": quality.nmi,
                "nmi held out": beyond.nmi,
                "adjusted rand": quality.adjusted_rand,
                "purity": quality.purity,
                "seconds": seconds,
                **kept,
                **self.facts,
            }
        )
        write_rows(self.output, self.rows, COLUMNS)

    def baselines(self, lsa_widths: Sequence[int]) -> None:
        """k-means and mixtures on the columns that KLDA reads."""
        k = len(set(self.fit[1]))
        read = TextFeatures.fit(self.fit[0], kind=self.features, **self.columns)
        x, y = read.transform(self.fit[0]), read.transform(self.held[0])
        for name, a, b, start in self._spaces(x, y, lsa_widths):
            means = KMeans(k, n_init=5, random_state=self.seed).fit(a)
            self.add(f"k-means, {name}", means.labels_, means.predict(b), time.perf_counter() - start)
            start = time.perf_counter()
            kind = "diag" if a.shape[1] > max(LSA_WIDTHS) else "full"
            a, b = (m.toarray() if hasattr(m, "toarray") else m for m in (a, b))
            mixture = GaussianMixture(k, covariance_type=kind, n_init=3, random_state=self.seed).fit(a)
            self.add(f"mixture, {name}", mixture.predict(a), mixture.predict(b), time.perf_counter() - start)

    def _spaces(self, x: Any, y: Any, lsa_widths: Sequence[int]) -> Iterator[tuple[str, Any, Any, float]]:
        yield "columns", x, y, time.perf_counter()
        for width in lsa_widths:
            start = time.perf_counter()
            lsa = TruncatedSVD(width, random_state=self.seed).fit(x)
            yield f"LSA {width}", normalize(lsa.transform(x)), normalize(lsa.transform(y)), start

    def klda(self, objectives: Sequence[str]) -> KLDA:
        """KLDA by each objective; the last is returned."""
        settings = {"features": self.features, **self.columns, "random_state": self.seed}
        k = len(set(self.fit[1]))
        for asked in objectives:
            objective = None if asked == "none" else asked
            start = time.perf_counter()
            dense = KLDA(k, objective=objective, **settings).fit(self.fit[0])
            name = f"KLDA, {objective or 'mixture only'}"
            self.add(name, dense.labels_, dense.predict(self.held[0]), time.perf_counter() - start)
        return dense

    def pruned(self, dense: KLDA) -> None:
        """Half of the words and of the hidden units, by each score."""
        whole = _encoder_size(dense)
        for words, units in PRUNED.items():
            for epochs in (0, 10):
                start = time.perf_counter()
                small = dense.prune(
                    self.fit[0], word_score=words, criterion=units, epochs=epochs, seed=self.seed, **HALF
                )
                how = words if words == units else f"{words} + {units}"
                self.add(
                    f"KLDA, half by {how}" + (", followed" if epochs else ""),
                    small.labels_,
                    small.predict(self.held[0]),
                    time.perf_counter() - start,
                    **{
                        "words kept": small.features_.size / dense.features_.size,
                        "encoder kept": _encoder_size(small) / whole,
                    },
                )


def _encoder_size(model: KLDA) -> int:
    return secateur.trace(model.network_, torch.zeros(1, model.features_.size)).cost().params


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", help="a .csv or .csv.gz with columns text and label")
    parser.add_argument("--features", nargs="+", default=["tfidf", "multi_hot"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--held-out", type=int, default=1600)
    parser.add_argument("--stop-words", choices=["english", "none"], default="english")
    parser.add_argument("--analyzer", choices=["word", "char"], default="word")
    parser.add_argument("--objectives", nargs="+", default=["elbo", "none", "dec"], help="of KLDA; the last is pruned")
    parser.add_argument("--lsa-widths", type=int, nargs="+", default=list(LSA_WIDTHS), help="of the baselines")
    parser.add_argument("--prune", action=argparse.BooleanOptionalAction, default=True, help="or KLDA whole alone")
    parser.add_argument("--klda", action=argparse.BooleanOptionalAction, default=True, help="or the baselines alone")
    parser.add_argument("--output", default="klda_agnews")
    args = parser.parse_args()
    stop_words = None if args.stop_words == "none" else args.stop_words
    texts, labels, _ = read_texts(args.texts)
    rows: list[dict[str, Any]] = []
    facts = {"machine": machine("scikit-learn", "numpy")}
    for features in args.features:
        for seed in args.seeds:
            a, b, ya, yb = train_test_split(
                texts, labels.numpy(), test_size=args.held_out, stratify=labels.numpy(), random_state=seed
            )
            run = Run(features, args.analyzer, stop_words, seed, (a, ya), (b, yb), args.output, rows, facts)
            if args.klda:
                dense = run.klda(args.objectives)
                if args.prune:
                    run.pruned(dense)
            run.baselines(args.lsa_widths)


if __name__ == "__main__":
    main()
