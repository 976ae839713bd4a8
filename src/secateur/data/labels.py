"""Labels of any kind to class numbers 0 .. K - 1, the same for all parts of a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.errors import DataError


def encode_labels(
    parts: Mapping[str, NDArray[Any]], names: NDArray[Any] | None, where: str
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return labels as int64 class numbers, and the classes' names.

    Args:
        parts: per part (N,) or (N, 1) integers or strings.
        names: (K,) names; then integer labels are places in it. None: the sorted labels of `train` are the classes.
        where: the file, for errors.
    Raises:
        DataError: labels are not whole numbers or strings, or one has no class.

    >>> encode_labels({"train": np.array(["cat", "ant", "cat"])}, None, "x.npz")
    ({'train': tensor([1, 0, 1])}, ('ant', 'cat'))
    """
    flat = {part: _flat(y, f"y of {part} in {where}") for part, y in parts.items()}
    if names is not None and flat["train"].dtype.kind != "U":
        known = np.arange(len(names))
    else:
        known = np.unique(flat["train"]) if names is None else names
    classes = tuple(map(str, (known if names is None else names).tolist()))
    order = np.argsort(known)
    encoded = {}
    for part, y in flat.items():
        strangers = sorted(set(np.unique(y).tolist()) - set(known.tolist()), key=str)
        if strangers:
            raise DataError(
                f"{where}: {part} has labels without a class: {strangers[:5]}. Known: {', '.join(classes[:20])}."
            )
        encoded[part] = torch.from_numpy(order[np.searchsorted(known, y, sorter=order)].astype(np.int64))
    return encoded, classes


def _flat(y: NDArray[Any], where: str) -> NDArray[Any]:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) == 0:
        raise DataError(f"{where} has shape {y.shape}. Labels are one class number or name per sample: (N,).")
    if y.dtype.kind == "f" and np.isfinite(y).all() and (y == np.round(y)).all():
        y = y.astype(np.int64)
    if y.dtype.kind == "b" or y.dtype.kind == "u":
        y = y.astype(np.int64)
    if y.dtype.kind not in "iU":
        raise DataError(f"{where} has dtype {y.dtype}, or values that are not whole. Store class numbers or names.")
    return y
