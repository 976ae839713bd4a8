"""`secateur.json`: what a saved folder holds. Strict, versioned, and sealed with a checksum of itself.

The checksums find accidents (a truncated copy, a flipped bit), not forgery: who can write the folder can write them.
What a forged folder may do is bounded elsewhere: no code runs, no path leaves the folder, sizes are checked first.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from secateur.errors import FileError
from secateur.files.atomic import is_regular
from secateur.files.compact import SUFFIX, read_bytes
from secateur.files.decode import DecodeError, decode
from secateur.files.fingerprint import Fingerprint

MANIFEST, WEIGHTS, PLAN, RECIPE, REPORT = (
    "secateur.json",
    "model.safetensors",
    "plan.json",
    "recipe.toml",
    "report.json",
)
REQUIRED, OPTIONAL = (WEIGHTS, PLAN), (RECIPE, REPORT)
KIND, SCHEMA = "secateur.model", 1
MAX_TEXT_BYTES = 64 * 2**20


@dataclass(frozen=True)
class FileEntry:
    """Length and checksum of one file."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a saved model that isn't weights or plan.

    Attributes:
        secateur: the version that wrote it.
        source: how to build the dense architecture (`secateur.sources`), or None where the caller builds it.
        class_name: of the model, for people.
        dtype: floating types of the stored weights, joined by "+".
        tied: state-dict keys that are another key's tensor.
        constants: dtypes of tensors outside the state dict (plain attributes, buffers that are not persistent).
        files: the other files of the folder.
        fingerprint: what the model computes.
    """

    secateur: str
    source: str | None
    class_name: str
    dtype: str
    tied: dict[str, str]
    constants: dict[str, str]
    files: dict[str, FileEntry]
    fingerprint: Fingerprint

    @property
    def names(self) -> dict[str, str]:
        """The files as they are called in the folder, by the name of their plain form."""
        return {name.removesuffix(SUFFIX): name for name in self.files}

    def to_json(self) -> str:
        """One JSON text, the same for the same manifest."""
        body = {"kind": KIND, "schema": SCHEMA, **asdict(self)}
        return json.dumps({**body, "checksum": _seal(body)}, indent=1, allow_nan=False) + "\n"


def read_manifest(folder: Path) -> Manifest:
    """Read and check `secateur.json`.

    Raises:
        FileError: there is none, or it is foreign, corrupt, or of another schema.
    """
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise FileError(f"'{folder}' {what}. Give the folder that secateur.save wrote.")
    path = folder / MANIFEST
    if not path.exists():
        raise FileError(
            f"'{folder}' holds no {MANIFEST}, so Secateur did not save it. Give a folder from secateur.save."
        )
    try:
        data = json.loads(read_text(path))
        if not isinstance(data, dict) or data.get("kind") != KIND:
            raise FileError(f"'{path}' is not a model that Secateur saved. Give a folder from secateur.save.")
        if data.get("schema") != SCHEMA:
            raise FileError(
                f"'{path}' has schema {data.get('schema')!r}; this Secateur reads schema {SCHEMA}."
                " Load it with the version that wrote it, or upgrade."
            )
        checksum = data.pop("checksum", None)
        if checksum != _seal(data):
            raise FileError(f"'{path}' is damaged: its checksum does not match. {_RESTORE}")
        manifest: Manifest = decode(Manifest, {k: v for k, v in data.items() if k not in ("kind", "schema")}, "")
    except (DecodeError, ValueError, RecursionError) as error:
        raise FileError(f"'{path}' can't be read: {error}. {_RESTORE}") from error
    if missing := [name for name in REQUIRED if name not in manifest.names]:
        raise FileError(f"'{path}' lists no {missing[0]}. {_RESTORE}")
    if strange := [name for name in manifest.files if name.removesuffix(SUFFIX) not in REQUIRED + OPTIONAL]:
        raise FileError(f"'{path}' lists {strange[0]!r}, which is no file of a saved model. Don't load it.")
    return manifest


_RESTORE = "Restore it from a copy, or save the model again"


def _seal(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def read_text(path: Path) -> str:
    """Read a UTF-8 file of at most 64 MiB that is a plain file, squeezed or not."""
    check_regular(path)
    if (size := path.stat().st_size) > MAX_TEXT_BYTES:
        raise FileError(
            f"'{path}' has {size:,} bytes; at most {MAX_TEXT_BYTES:,} are read. It is not one of Secateur's."
        )
    try:
        return read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"'{path}' can't be read: {error}. {_RESTORE}.") from error


def check_regular(path: Path) -> None:
    """Raise FileError for a link, pipe, device or missing file."""
    if not is_regular(path):
        what = "is a link or a special file" if os.path.lexists(path) else "is missing"
        raise FileError(f"'{path}' {what}. {_RESTORE}, as plain files.")


def entry_of(path: Path) -> FileEntry:
    """Measure one file."""
    with path.open("rb") as file:
        return FileEntry(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def check_file(path: Path, entry: FileEntry) -> None:
    """Raise FileError unless the file is the one that was saved."""
    check_regular(path)
    if (size := path.stat().st_size) != entry.size:
        raise FileError(f"'{path}' has {size:,} bytes, but {entry.size:,} were saved. {_RESTORE}.")
    if entry_of(path) != entry:
        raise FileError(f"'{path}' is damaged: its checksum does not match. {_RESTORE}.")
