"""`npz:FILE`: arrays of a NumPy archive, never pickled objects.

Names: `x`, `y`; or `x_train`, `y_train` with any of `x_val`, `y_val`, `x_test`, `y_test`; `classes` may name labels.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.data.arrays import Pair
from secateur.data.labels import encode_labels
from secateur.data.sources import SOURCES, RawData, ReadConfig
from secateur.errors import DataError

Arrays = dict[str, NDArray[Any]]
IMAGE_CHANNELS = (1, 3, 4)


@SOURCES.register("npz")
def read_npz(address: str, read: ReadConfig) -> RawData:
    """Read an archive of arrays. uint8 images (N, H, W), (N, H, W, C) or (N, C, H, W) become uint8 (N, C, H, W).

    Raises:
        DataError: no such file, not an archive, pickled objects, missing or misfitting arrays, numbers not finite.
    """
    arrays = _load(address)
    train = "" if "x" in arrays else "_train"
    suffixes = {"train": train, "val": "_val", "test": "_test"}
    found = {part: s for part, s in suffixes.items() if f"x{s}" in arrays}
    missing = [f"{k}{s}" for s in {train, *found.values()} for k in "xy" if f"{k}{s}" not in arrays]
    if missing:
        raise DataError(
            f"{address} lacks {', '.join(sorted(missing))}; it has {', '.join(sorted(arrays)) or 'nothing'}."
            " Store x and y, or x_train and y_train."
        )
    labels, classes = encode_labels({p: arrays[f"y{s}"] for p, s in found.items()}, arrays.get("classes"), address)
    pairs = {p: _pair(arrays[f"x{s}"], labels[p], f"x{s} of {address}") for p, s in found.items()}
    shapes = {tuple(x.shape[1:]) for x, _ in pairs.values()}
    if len(shapes) > 1:
        raise DataError(f"{address} has samples of several shapes: {sorted(shapes)}. All parts must have one shape.")
    return RawData(train=pairs["train"], val=pairs.get("val"), test=pairs.get("test"), classes=classes)


def _load(address: str) -> Arrays:
    if not Path(address).is_file():
        raise DataError(f"No file '{address}'. Write npz:FILE with the path of a .npz archive.")
    try:
        with open(address, "rb") as file:  # ours to close: NumPy leaks it when the archive is broken
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise DataError(f"{address} is a single array. Save x and y together with np.savez(FILE, x=x, y=y).")
            return {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as err:
        raise DataError(
            f"{address} cannot be read as a .npz archive of plain arrays: {err}"
            " Save it again with np.savez; object arrays are refused because they may run code."
        ) from err


def _pair(x: NDArray[Any], y: Tensor, where: str) -> Pair:
    if x.ndim < 2 or len(x) != len(y):
        raise DataError(f"{where} has shape {x.shape} for {len(y)} labels. Its first axis counts the samples.")
    if len(x) == 0:
        raise DataError(f"{where} has no samples.")
    if x.dtype.kind not in "fiub":
        raise DataError(f"{where} has dtype {x.dtype}. Store uint8 images, or numbers.")
    x = _channels_first(x, where)
    if x.dtype == np.uint8 and x.ndim == 4:
        return torch.from_numpy(np.ascontiguousarray(x)), y
    values = np.ascontiguousarray(x, dtype=np.float32)
    finite = np.isfinite(values)
    if not finite.all():
        places = [tuple(map(int, at)) for at in np.argwhere(~finite)[:5]]
        raise DataError(
            f"{where} holds {int((~finite).sum())} values that are not finite, first at {places}. Clean it."
        )
    return torch.from_numpy(values), y


def _channels_first(x: NDArray[Any], where: str) -> NDArray[Any]:
    if x.ndim == 3 and x.dtype == np.uint8:
        return x[:, None]
    if x.ndim != 4:
        return x
    first, last = x.shape[1] in IMAGE_CHANNELS, x.shape[3] in IMAGE_CHANNELS
    if first and last and x.dtype == np.uint8:
        raise DataError(
            f"{where} has shape {x.shape}: either axis 1 or axis 3 could be channels. Store it as float NCHW."
        )
    return np.moveaxis(x, 3, 1) if last and not first else x
