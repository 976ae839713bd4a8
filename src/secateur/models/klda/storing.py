"""A fitted KLDA as a folder: settings and features as strict JSON, and the network as `secateur.save` writes it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from secateur.edits import Edits
from secateur.errors import FileError
from secateur.files import save
from secateur.files.atomic import new_folder
from secateur.files.decode import DecodeError, decode
from secateur.files.loading import open_folder
from secateur.files.manifest import read_text
from secateur.models.klda.features import NumberFeatures, TextFeatures
from secateur.models.klda.network import KLDANet

STATE, NETWORK = "klda.json", "network"
KIND, SCHEMA = "secateur.klda", 1


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What `klda.json` holds beside kind and schema."""

    settings: dict[str, Any]  # the estimator's parameters; a random state that is no number is None
    features: TextFeatures | NumberFeatures
    classes: tuple[str, ...] | tuple[int, ...] | None
    bic: dict[str, float]
    n_features_in: int | None


def write_folder(
    folder: str | os.PathLike[str],
    stored: Stored,
    net: KLDANet,
    edits: Edits,
    *,
    source: str,
    inputs: Tensor,
    overwrite: bool,
) -> Path:
    """Write a folder that appears whole or not at all.

    Raises:
        FileError: the folder exists (or is no saved KLDA, with `overwrite`), or the system refuses to write.
    """
    target = Path(os.path.abspath(folder))
    if os.path.lexists(target) and not overwrite:
        raise FileError(f"'{target}' exists. Choose another folder, or pass overwrite=True.")
    if os.path.lexists(target) and {path.name for path in target.iterdir()} != {STATE, NETWORK}:
        raise FileError(f"'{target}' is no saved KLDA, so it isn't overwritten. Choose another folder.")
    text = json.dumps({"kind": KIND, "schema": SCHEMA, **asdict(stored)}, indent=1, ensure_ascii=False, default=_plain)
    with new_folder(target, overwrite=overwrite) as partial:
        (partial / STATE).write_bytes(text.encode())
        save(net, partial / NETWORK, plan=edits, source=source, inputs=inputs)
    return Path(folder)


def read_folder(folder: str | os.PathLike[str]) -> tuple[Stored, KLDANet, Edits, str]:
    """Read what `write_folder` wrote: the state, the network, its edits and its source.

    Raises:
        FileError: the folder is foreign, damaged, or its parts don't fit each other.
    """
    path = Path(folder) / STATE
    if not path.exists():
        raise FileError(f"'{folder}' holds no {STATE}. Give a folder that KLDA.save wrote.")
    try:
        data = json.loads(read_text(path))
        if not isinstance(data, dict) or (data.pop("kind", None), data.pop("schema", None)) != (KIND, SCHEMA):
            raise FileError(f"'{path}' is not a KLDA of schema {SCHEMA}. Load it with the version that wrote it.")
        stored: Stored = decode(Stored, data, "")
    except (DecodeError, ValueError, RecursionError) as error:
        raise FileError(f"'{path}' can't be read: {error}. Restore it from a copy, or save the model again.") from error
    saved = open_folder(Path(folder) / NETWORK)
    if not isinstance(saved.model, KLDANet) or saved.manifest.source is None:
        raise FileError(f"'{folder}/{NETWORK}' holds a {saved.manifest.class_name}, not the network of a KLDA.")
    return stored, saved.model, saved.edits, saved.manifest.source


def _plain(value: Any) -> Any:
    """Settings that JSON doesn't know: ranges, arrays and NumPy's numbers; of a random state, nothing is kept."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, range | set | frozenset) else None
