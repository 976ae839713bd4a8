"""Classifiers of images, as a comparison sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor

from secateur.compare.folds import Cut, Indices
from secateur.compare.subjects import SUBJECTS, Task, Trained, fingerprint_of, scaled
from secateur.data import ArrayDataset, DataSplits, ReadConfig, channel_statistics, read_digits
from secateur.data.npz import read_npz
from secateur.errors import ConfigError
from secateur.models import digits_cnn, mlp
from secateur.models.cifar_resnet import STAGE_WIDTHS, CifarResNet


@dataclass(frozen=True, kw_only=True)
class _Images(Trained):
    """A network on images that are normalised by the training part."""

    measure: ClassVar[str] = "accuracy"

    n_test: int = 0  # samples that no fold has: the same for all seeds

    def samples(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """x (N, C, H, W) and y (N,) of all samples, and the names of the classes."""
        raise NotImplementedError

    def labels(self) -> Tensor:
        """(N,) classes."""
        return self.samples()[1]

    def held_out(self) -> Indices:
        """`n_test` of the samples, stratified."""
        order = np.arange(len(self.labels()))
        if not self.n_test:
            return order[:0]
        drawn: Indices = train_test_split(order, test_size=self.n_test, stratify=self.labels(), random_state=0)[1]
        return drawn

    def cut(self, cut: Cut) -> DataSplits:
        """The three parts, normalised by the training part's mean and standard deviation."""
        x, y, classes = self.samples()
        mean, std = channel_statistics(x[cut.train])
        train, val, test = (ArrayDataset(x[i], y[i], mean=mean, std=std) for i in (cut.train, cut.val, cut.test))
        return DataSplits(train, val, test, classes)


@dataclass(frozen=True, kw_only=True)
class _Digits(_Images):
    """A network on scikit-learn's digits."""

    def samples(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """(1797, 1, 8, 8) images of the ten digits."""
        return _digits()

    def fingerprint(self) -> str:
        """They come with scikit-learn and do not change."""
        return "digits"


@SUBJECTS.register("digits_cnn")
@dataclass(frozen=True, kw_only=True)
class DigitsCNNSubject(_Digits):
    """The residual CNN on scikit-learn's digits."""

    width: int = 16

    def task(self, cut: Cut, seed: int) -> Task:
        """See `Subject`."""
        return self.learner(self.cut(cut), lambda scale: digits_cnn(width=scaled(self.width, scale)), seed)


@SUBJECTS.register("digits_mlp")
@dataclass(frozen=True, kw_only=True)
class DigitsMLPSubject(_Digits):
    """A multilayer perceptron on scikit-learn's digits. Hidden layers that give what they take can be dropped."""

    width: int = 64
    n_hidden: int = 3

    def task(self, cut: Cut, seed: int) -> Task:
        """See `Subject`."""
        return self.learner(self.cut(cut), lambda scale: mlp(64, (scaled(self.width, scale),) * self.n_hidden), seed)


@SUBJECTS.register("cifar_resnet20")
@dataclass(frozen=True, kw_only=True)
class CifarSubject(_Images):
    """A ResNet for 32x32 images, such as CIFAR-10, from a .npz file (see `secateur.data.npz`).

    Parts that the file has are put together, since the comparison cuts its own.
    """

    data: str = ""  # the .npz file
    depth: int = 20
    width: int = STAGE_WIDTHS[0]  # of the first stage; those of the others are two and four times as wide
    batch_size: int = 128

    def __post_init__(self) -> None:
        if not self.data:
            raise ConfigError("Which images? Write cifar_resnet20?data='FILE.npz', with x (N, 32, 32, 3) uint8 and y.")

    def samples(self) -> tuple[Tensor, Tensor, tuple[str, ...]]:
        """All images of the file."""
        return _images(self.data)

    def fingerprint(self) -> str:
        """Of the file."""
        return fingerprint_of(self.data)

    def task(self, cut: Cut, seed: int) -> Task:
        """See `Subject`."""
        data = self.cut(cut)

        def make(scale: float) -> CifarResNet:
            width = 2 * scaled(self.width, scale / 2)  # even, so that shortcuts pad both sides alike
            return CifarResNet(self.depth, len(data.classes), (width, 2 * width, 4 * width))

        return self.learner(data, make, seed)


@lru_cache
def _digits() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    return *read_digits("", ReadConfig()).train, tuple(map(str, range(10)))


@lru_cache(maxsize=1)
def _images(path: str) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    read = read_npz(path, ReadConfig())
    parts = [part for part in (read.train, read.val, read.test) if part is not None]
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return x, y, read.classes
