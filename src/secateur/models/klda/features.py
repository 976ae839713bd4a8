"""From samples to the columns that the encoder reads, as plain data that shrinks along with the encoder's input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from secateur.errors import ConfigError, DataError
from secateur.registry import Registry

Columns = Any  # (N, F) float32: a NumPy array, or a SciPy CSR matrix
CHARACTERS = (1, 2)  # single characters and pairs


def _jieba() -> dict[str, Any]:
    try:
        import jieba
    except ModuleNotFoundError as error:
        raise ConfigError("analyzer='jieba' needs jieba: pip install jieba. Or use analyzer='char'.") from error
    return {"tokenizer": jieba.lcut, "token_pattern": None}


ANALYZERS: Registry[str, Callable[[], dict[str, Any]]] = Registry("analyzer")
ANALYZERS["word"] = dict
ANALYZERS["char"] = lambda: {"analyzer": "char", "ngram_range": CHARACTERS}
ANALYZERS["jieba"] = _jieba


class Features(Protocol):
    """Fitted features: `transform` is all that prediction needs."""

    kind: ClassVar[str]

    @property
    def size(self) -> int:
        """How many columns there are."""
        ...

    def transform(self, samples: Any) -> Columns:
        """Samples as columns."""
        ...

    def restrict(self, keep: Sequence[int]) -> Self:
        """The features without the columns that aren't in `keep`."""
        ...


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Bags of words, by scikit-learn's vectorizers.

    "multi_hot" columns are 1 where a document holds the word. "tfidf" columns are (1 + log count) * idf, scaled to
    length 1 over the words of the vocabulary; so where words are dropped, the others of a document grow.
    """

    kind: str  # "multi_hot" or "tfidf"
    analyzer: str
    stop_words: tuple[str, ...]
    vocabulary: tuple[str, ...]
    idf: tuple[float, ...]  # () for multi_hot

    @classmethod
    def fit(
        cls,
        texts: Iterable[str],
        *,
        kind: str = "multi_hot",
        analyzer: str = "word",
        stop_words: str | Sequence[str] | None = None,
        max_features: int | None = None,
        min_df: int = 1,
    ) -> TextFeatures:
        """Learn the vocabulary, most frequent words first where `max_features` cuts it, and kept in sorted order.

        >>> TextFeatures.fit(["a fig", "a date"], analyzer="word").vocabulary  # one letter is no word to scikit-learn
        ('date', 'fig')
        """
        vectorizer = _vectorizer(
            kind, analyzer, stop_words=_plain(stop_words), max_features=max_features, min_df=min_df
        )
        try:
            vectorizer.fit(_texts(texts))
        except ValueError as error:
            raise DataError(f"These texts give no vocabulary: {error}.") from error
        words = tuple(map(str, vectorizer.get_feature_names_out()))
        idf = tuple(map(float, vectorizer.idf_)) if kind == "tfidf" else ()
        stop = tuple(sorted(vectorizer.get_stop_words() or ()))
        return cls(kind=kind, analyzer=analyzer, stop_words=stop, vocabulary=words, idf=idf)

    @property
    def size(self) -> int:
        """Words in the vocabulary."""
        return len(self.vocabulary)

    def transform(self, samples: Iterable[str]) -> Columns:
        """(N, V) float32, sparse. Words that are not in the vocabulary are left out."""
        vectorizer = _vectorizer(
            self.kind, self.analyzer, stop_words=list(self.stop_words) or None, vocabulary=list(self.vocabulary)
        )
        if self.kind == "tfidf":
            vectorizer.idf_ = np.array(self.idf)
        return vectorizer.transform(_texts(samples)).astype(np.float32).tocsr()

    def restrict(self, keep: Sequence[int]) -> TextFeatures:
        """The same with a smaller vocabulary.

        >>> TextFeatures.fit(["fig date"]).restrict([1]).vocabulary
        ('fig',)
        """
        idf = tuple(self.idf[i] for i in keep) if self.idf else ()
        return replace(self, vocabulary=tuple(self.vocabulary[i] for i in keep), idf=idf)


@dataclass(frozen=True, kw_only=True)
class NumberFeatures:
    """Numeric columns, standardised: (x - mean) / scale, so that 0 says as little as a word that is absent."""

    kind: str
    chosen: tuple[int, ...]  # columns that are read
    mean: tuple[float, ...]  # of these
    scale: tuple[float, ...]

    @classmethod
    def fit(cls, x: NDArray[Any]) -> NumberFeatures:
        """Measure mean and standard deviation; a constant column has scale 1.

        >>> NumberFeatures.fit(np.array([[1.0, 5.0], [3.0, 5.0]]))
        NumberFeatures(kind='precomputed', chosen=(0, 1), mean=(2.0, 5.0), scale=(1.0, 1.0))
        """
        mean, scale = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        scale = np.where(scale > 1e-12 * (1 + np.abs(mean)), scale, 1.0)
        return cls(
            kind="precomputed",
            chosen=tuple(range(x.shape[1])),
            mean=tuple(mean.tolist()),
            scale=tuple(scale.tolist()),
        )

    @property
    def size(self) -> int:
        """Columns that are read."""
        return len(self.chosen)

    def transform(self, samples: NDArray[Any]) -> Columns:
        """(N, size) float32."""
        return ((samples[:, list(self.chosen)] - np.array(self.mean)) / np.array(self.scale)).astype(np.float32)

    def restrict(self, keep: Sequence[int]) -> NumberFeatures:
        """The same, reading fewer of the columns that it is given."""
        chosen = tuple(self.chosen[i] for i in keep)
        mean, scale = (tuple(t[i] for i in keep) for t in (self.mean, self.scale))
        return replace(self, chosen=chosen, mean=mean, scale=scale)


def _vectorizer(kind: str, analyzer: str, **settings: Any) -> Any:
    from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer

    settings |= ANALYZERS[analyzer]()
    if kind == "tfidf":
        return TfidfVectorizer(sublinear_tf=True, **settings)
    return CountVectorizer(binary=True, **settings)


def _texts(samples: Any) -> list[str]:
    if isinstance(samples, str):
        raise DataError("The texts are one string. Pass a list of texts, one per sample.")
    texts = list(samples)
    if strange := next((t for t in texts if not isinstance(t, str)), None):
        raise DataError(f"A text is a {type(strange).__name__}. Pass strings, or features='precomputed' for numbers.")
    return texts


def _plain(stop_words: str | Sequence[str] | None) -> str | list[str] | None:
    return stop_words if stop_words is None or isinstance(stop_words, str) else list(stop_words)
