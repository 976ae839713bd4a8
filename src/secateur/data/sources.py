"""From a source's address to three splits: `digits`, `npz:FILE`, `csv:FILE`, … (see `SOURCES`), and what users add."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.data.arrays import ArrayDataset, DataSplits, Pair, channel_statistics
from secateur.data.words import Words, known_words, renumbered
from secateur.errors import ConfigError, DataError
from secateur.registry import Registry


@dataclass(frozen=True, kw_only=True)
class ReadConfig:
    """How a source is read. Each source uses what concerns it."""

    mean: tuple[float, ...] | None = None  # per channel, after scaling to [0, 1]; None: measured on the train split
    std: tuple[float, ...] | None = None
    image_size: tuple[int, int] | None = None  # (height, width) to resize to; None: all images have one size already
    label: str | None = None  # the label's column; None: `label` if there is one, or else the last
    text: str | None = None  # the column of texts; None: `text` if there is one, or else the first beside the label
    max_words: int = 10_000  # size of the vocabulary, of the training part's most frequent words
    max_length: int = 64  # words of a text that are read; shorter ones are padded

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ConfigError("mean and std must be given together. Leave both out to measure them on the train split.")
        if self.std is not None and min(self.std) <= 0:
            raise ConfigError(f"std={self.std} has a value that is not positive.")
        if self.image_size is not None and min(self.image_size) < 1:
            raise ConfigError(f"image_size={self.image_size} is not a (height, width) in pixels.")
        if self.max_words < 3 or self.max_length < 1:
            raise ConfigError(
                f"max_words={self.max_words} must be at least 3 (two numbers are special), and"
                f" max_length={self.max_length} at least 1."
            )


@dataclass(frozen=True, kw_only=True)
class RawData:
    """What a source read: x (N, C, ...) uint8 or float32 and y (N,) int64; parts that are None are cut from `train`.

    Of texts, x is (N, T) int64: numbers of `words`.
    """

    train: Pair
    val: Pair | None = None
    test: Pair | None = None
    classes: tuple[str, ...]
    words: Words | None = None


Source = Callable[[str, ReadConfig], RawData]
SOURCES: Registry[str, Source] = Registry("data source")


def load_data(
    source: str,
    *,
    seed: int = 0,
    val_fraction: float = 0.15,
    test_fraction: float = 0.2,
    read: ReadConfig | None = None,
) -> DataSplits:
    """Read a source and cut it into train, val and test, stratified by class.

    Args:
        source: `digits`, or `scheme:address` with a scheme of `SOURCES`.
        seed: of the cut.
        val_fraction, test_fraction: parts of all samples; unused for a part that the source has already.
        read: how to read; see `ReadConfig`.
    Returns:
        Splits whose x are normalised per channel by the mean and std of the train split, or by those given; or, of
        texts, numbers of the words that are known from the train split.
    Raises:
        DataError: the source is unknown, unreadable, or holds something else.
        ConfigError: the fractions leave nothing to train on.

    >>> print(load_data("digits"))
    1168 train, 270 val, 359 test samples of shape (1, 8, 8), 10 classes
    """
    if not (0 < val_fraction < 1 and 0 < test_fraction < 1 and val_fraction + test_fraction < 1):
        raise ConfigError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} must be positive and sum to less than 1."
        )
    scheme, _, address = source.partition(":")
    if scheme not in SOURCES:
        known = ", ".join(sorted(SOURCES))
        raise DataError(f"No data source '{scheme}' (in '{source}'). Known: {known}; with an address: npz:FILE.")
    read = read or ReadConfig()
    raw = SOURCES[scheme](address, read)
    n_samples = len(raw.train[1])
    rest, test = raw.train, raw.test
    if test is None:
        rest, test = _cut(rest, round(test_fraction * n_samples), seed, source)
    val = raw.val
    if val is None:
        rest, val = _cut(rest, round(val_fraction * n_samples), seed, source)
    if raw.words is not None:
        keep = known_words(rest[0], len(raw.words), read.max_words)
        parts = [ArrayDataset(renumbered(x, keep, len(raw.words)), y) for x, y in (rest, val, test)]
        return DataSplits(parts[0], parts[1], parts[2], raw.classes, raw.words.restrict(keep))
    mean, std = _statistics(rest[0], read, source)
    train, val_set, test_set = (ArrayDataset(x, y, mean=mean, std=std) for x, y in (rest, val, test))
    return DataSplits(train, val_set, test_set, raw.classes)


def _cut(pair: Pair, n_out: int, seed: int, source: str) -> tuple[Pair, Pair]:
    from sklearn.model_selection import train_test_split

    x, y = pair
    counts = torch.bincount(y)
    present = counts[counts > 0]
    if n_out < len(present) or len(y) - n_out < len(present) or int(present.min()) < 2:
        raise DataError(
            f"{source} has {len(y)} samples of {len(present)} classes (the rarest has {int(present.min())}):"
            f" too few to cut off {n_out} with every class on both sides. Add samples or change the fractions."
        )
    kept, out = train_test_split(range(len(y)), test_size=n_out, stratify=y.numpy(), random_state=seed)
    return (x[kept], y[kept]), (x[out], y[out])


def _statistics(x: Tensor, read: ReadConfig, source: str) -> Pair:
    if read.mean is None or read.std is None:
        return channel_statistics(x)
    if len(read.mean) != x.shape[1] or len(read.std) != x.shape[1]:
        raise DataError(
            f"{source} has {x.shape[1]} channels, but mean and std have {len(read.mean)} and {len(read.std)} values."
        )
    return torch.tensor(read.mean), torch.tensor(read.std)


@SOURCES.register("digits")
def read_digits(address: str, read: ReadConfig) -> RawData:
    """Read scikit-learn's 1,797 scanned digits: x (1797, 1, 8, 8) float32 in [0, 1]. Comes with scikit-learn."""
    from sklearn.datasets import load_digits

    if address:
        raise DataError(f"digits takes no address, but got '{address}'. Write just: digits")
    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float().div(16).unsqueeze(1)
    return RawData(train=(x, torch.from_numpy(bunch.target).long()), classes=tuple(map(str, range(10))))
