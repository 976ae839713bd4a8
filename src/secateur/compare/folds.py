"""Cutting samples: which are trained on, which chosen by, which reported on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import DataError

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """Three disjoint sets of indices: val is taken from the training part of a fold, so that test decides nothing."""

    train: Indices
    val: Indices
    test: Indices

    @cached_property
    def test_over_train(self) -> float:
        """Samples reported on per sample that anything was learnt or chosen from: n2 / n1 of `corrected_t_test`."""
        return len(self.test) / (len(self.train) + len(self.val))


def cut_folds(labels: Any, n_folds: int, seed: int, val_fraction: float, held_out: Any = ()) -> list[Cut]:
    """Cut samples into folds, stratified by class, and a validation part from the training part of each.

    Args:
        labels: (N,) classes.
        n_folds: each sample is in the test part of one fold; 1: the samples that are held out are the test part.
        val_fraction: of a training part; never less than one sample per class.
        held_out: indices that are in no fold of several.
    Raises:
        DataError: a class has fewer samples than there are folds, or too few are left to train on; one fold, and
            nothing is held out.

    >>> cut = cut_folds([0, 0, 0, 0, 1, 1, 1, 1], n_folds=2, seed=0, val_fraction=0.4)[0]
    >>> len(cut.train), len(cut.val), len(cut.test)
    (2, 2, 4)
    """
    from sklearn.model_selection import StratifiedKFold, train_test_split

    y = np.asarray(labels)
    kept = np.setdiff1d(np.arange(len(y)), np.asarray(held_out, dtype=np.int64))
    classes, counts = np.unique(y[kept], return_counts=True)
    if n_folds == 1 and len(kept) == len(y):
        raise DataError("With one fold, samples are needed that are held out of it. Name some, or take several folds.")
    if counts.min() < n_folds:
        raise DataError(
            f"Class {classes[counts.argmin()]} has {counts.min()} samples, too few for {n_folds} folds. Take fewer."
        )
    pairs = [(kept, np.setdiff1d(np.arange(len(y)), kept))]
    if n_folds > 1:
        cutter = StratifiedKFold(n_folds, shuffle=True, random_state=seed)
        pairs = [(kept[rest], kept[test]) for rest, test in cutter.split(kept, y[kept])]
    cuts = []
    for rest, test in pairs:
        n_val = max(len(classes), round(val_fraction * len(rest)))
        try:
            train, val = train_test_split(rest, test_size=n_val, stratify=y[rest], random_state=seed)
        except ValueError as error:
            raise DataError(
                f"{len(rest)} samples of {len(classes)} classes are too few to cut off {n_val} to choose by: {error}"
            ) from error
        cuts.append(Cut(np.sort(train), np.sort(val), np.sort(test)))
    return cuts
