"""Models with their data, as a comparison sees them: built at any width, trained on a cut, scored on its parts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from secateur.compare.folds import Cut, Indices
from secateur.data import ArrayDataset, DataSplits, Words, read_texts
from secateur.errors import DataError, FileError
from secateur.measure import evaluate
from secateur.models import fruit_baskets, text_cnn
from secateur.registry import Registry
from secateur.steps import Finetune
from secateur.train import Augment, TrainConfig, WordDropout, fit_

FRUIT = "fruit"
"""The toy of 29 texts that comes with Secateur, in place of a file."""


class Task(Protocol):
    """A subject on one cut of its samples with one seed."""

    def build(self, scale: float) -> nn.Module:
        """The architecture with fresh weights, its widths times `scale`."""
        ...

    def fit(self, scale: float) -> nn.Module:
        """It, trained on the training part."""
        ...

    def splits(self, dense: nn.Module) -> DataSplits:
        """What steps may read; where labels are no part of the task, what the dense network makes of the samples."""
        ...

    def score(self, model: nn.Module, part: str) -> dict[str, float]:
        """Measures of quality on "train", "val" or "test"; "loss" where there is one."""
        ...

    @property
    def finetune(self) -> Finetune:
        """The step that ends every cell."""
        ...


class Subject(Protocol):
    """A frozen dataclass of settings.

    Class attributes:
        measure: of those that `Task.score` gives, the one that cells are compared by. Larger = better.
    """

    measure: ClassVar[str]

    def labels(self) -> Tensor:
        """(N,) classes of all samples."""
        ...

    def task(self, cut: Cut, seed: int) -> Task:
        """The samples cut, and whatever is learnt from the training part alone (vocabulary, mean)."""
        ...

    def held_out(self) -> Indices:
        """Which of them are in no fold, to be reported on where a grid has one fold; none by default."""
        ...

    def fingerprint(self) -> str:
        """A text that changes with the samples."""
        ...


SUBJECTS: Registry[str, type[Subject]] = Registry("model")


@dataclass(frozen=True, kw_only=True)
class Classification:
    """A task of a classifier, trained by cross-entropy."""

    data: DataSplits
    make: Callable[[float], nn.Module]
    train: TrainConfig
    finetune: Finetune

    def build(self, scale: float) -> nn.Module:
        """`make`, from a seed of its own."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.train.seed)
            return self.make(scale)

    def fit(self, scale: float) -> nn.Module:
        """Train on the training part; where `patience` is set, the validation part stops it."""
        model = self.build(scale)
        fit_(model, self.data.train, self.data.val, self.train, progress=False)
        return model.cpu().eval()

    def splits(self, dense: nn.Module) -> DataSplits:
        """The samples with their labels."""
        return self.data

    def score(self, model: nn.Module, part: str) -> dict[str, float]:
        """Accuracy; macro precision, recall and F1; cross-entropy."""
        found = evaluate(model, self.data.parts()[part])
        return {name: getattr(found, name) for name in ("accuracy", "precision", "recall", "f1", "loss")}


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How a subject is trained, and how it is fine-tuned at the end of every cell."""

    epochs: int = 20
    finetune_epochs: int = 4
    batch_size: int = 64
    lr: float = 3e-3
    patience: int | None = None  # stop training after so many epochs without a new lowest validation loss

    def config(self, seed: int) -> TrainConfig:
        """Of the training from nothing."""
        return TrainConfig(
            epochs=self.epochs, batch_size=self.batch_size, lr=self.lr, patience=self.patience, seed=seed
        )

    def tuning(self, seed: int) -> TrainConfig:
        """Of the fine-tuning: all epochs, whatever the cell is."""
        return TrainConfig(epochs=self.finetune_epochs, batch_size=self.batch_size, lr=self.lr, seed=seed)

    def learner(
        self, data: DataSplits, make: Callable[[float], nn.Module], seed: int, augment: Augment | None = None
    ) -> Classification:
        """The task that these settings make of samples."""
        train, tuning = (replace(config, augment=augment) for config in (self.config(seed), self.tuning(seed)))
        return Classification(data=data, make=make, train=train, finetune=Finetune(train=tuning))


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Texts of one file, or of two where it matters which are reported on."""

    data: str = FRUIT  # or a .csv or .csv.gz file of texts and labels
    test: str = ""  # a file of texts that no fold has

    def read(self) -> tuple[list[str], Tensor, tuple[str, ...]]:
        """All texts, those held out last; their classes as numbers; the classes' names.

        Raises:
            DataError: the files have different classes.
        """
        texts, y, classes = texts_of(self.data)
        if not self.test:
            return texts, y, classes
        more, of_more, found = texts_of(self.test)
        if found != classes:
            raise DataError(f"'{self.data}' has the classes {classes}, '{self.test}' has {found}. Make them the same.")
        return texts + more, torch.cat([y, of_more]), classes

    def labels(self) -> Tensor:
        """(N,) classes of the texts."""
        return self.read()[1]

    def held_out(self) -> Indices:
        """The texts of the second file."""
        return np.arange(len(texts_of(self.data)[0]), len(self.read()[0]))

    def fingerprint(self) -> str:
        """Of the files."""
        return " ".join(fingerprint_of(path) for path in (self.data, self.test) if path)


@SUBJECTS.register("text_cnn")
@dataclass(frozen=True, kw_only=True)
class TextCNNSubject(Texts, Trained):
    """`TextCNN` on texts, with the words of the training part."""

    measure: ClassVar[str] = "accuracy"

    epochs: int = 30
    batch_size: int = 16
    embed_dim: int = 32
    n_channels: int = 32
    kernel_sizes: tuple[int, ...] = (1, 2, 3)
    max_words: int = 10_000
    max_length: int = 8  # words of a text that are read
    word_dropout: float = 0.0  # of the words, in training

    def task(self, cut: Cut, seed: int) -> Task:
        """See `Subject`."""
        texts, y, classes = self.read()
        words = Words.of([texts[i] for i in cut.train], max_words=self.max_words)
        ids = words.encode(texts, length=self.max_length)
        train, val, test = (ArrayDataset(ids[i], y[i]) for i in (cut.train, cut.val, cut.test))

        def make(scale: float) -> nn.Module:
            return text_cnn(
                len(words),
                len(classes),
                embed_dim=scaled(self.embed_dim, scale),
                n_channels=scaled(self.n_channels, scale),
                kernel_sizes=self.kernel_sizes,
            )

        dropout = WordDropout(p=self.word_dropout) if self.word_dropout else None
        return self.learner(DataSplits(train, val, test, classes, words), make, seed, dropout)


def scaled(width: int, scale: float) -> int:
    """A width times a scale, at least 1."""
    return max(1, round(width * scale))


@lru_cache
def texts_of(data: str) -> tuple[list[str], Tensor, tuple[str, ...]]:
    """Texts, their classes as numbers, and the classes' names."""
    if data != FRUIT:
        return read_texts(data)
    texts, kinds = fruit_baskets()
    names = sorted(set(kinds))
    return texts, torch.tensor([names.index(kind) for kind in kinds]), tuple(names)


def fingerprint_of(data: str) -> str:
    """The toy's name, or the hash of a file's bytes."""
    if data == FRUIT:
        return data
    try:
        with open(data, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"The samples '{data}' can't be read: {error}.") from error
