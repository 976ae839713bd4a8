"""Loading a saved folder: build the architecture, replay the edits, read the weights, check the fingerprint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.coding.entropy import CODES_PER_BYTE
from secateur.edits import Edits
from secateur.errors import ConfigError, FileError, PlanError, RegistryError, SecateurError
from secateur.files.fingerprint import check_spec, differences, take_fingerprint
from secateur.files.manifest import PLAN, RECIPE, REPORT, WEIGHTS, Manifest, check_file, read_manifest, read_text
from secateur.files.state import State, fill, read_tensors
from secateur.sources import build_model, parse_source
from secateur.tensors import copy_around, distinct, like, named_tensors

Build = Callable[[], nn.Module]
MAX_DENSE = 2**27  # numbers that an architecture with memory may always have
MAX_SHRINK = 64  # times as many as the file holds, from there on

_REFUSE = "Don't load it; or pass a function that builds the model, load(folder, build), if you trust the folder."


@dataclass(frozen=True)
class Saved:
    """A loaded folder: the model in eval mode, and what was saved along."""

    model: nn.Module
    edits: Edits
    manifest: Manifest
    recipe: str | None = None
    report: Any = None


def load(folder: str | os.PathLike[str], build: Build | None = None, *, trust_source: bool = False) -> nn.Module:
    """Load a model that `save` wrote, in eval mode, with the dtype of its weights.

    Args:
        folder: the saved folder.
        build: makes the dense architecture, with any weights; by default the stored source does.
        trust_source: let a stored `python:` source import and run its code. Only for folders of people you trust.
    Raises:
        FileError: the folder is foreign, damaged or unsafe, or the model does not compute what it did when saved.

    >>> import tempfile, secateur
    >>> def build():
    ...     return nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> net, x = build(), torch.ones(1, 3)
    >>> plan = secateur.plan(net, x, secateur.Budget(width=0.5))
    >>> small = secateur.apply(net, plan)
    >>> with tempfile.TemporaryDirectory() as there:
    ...     again = load(secateur.save(small, f"{there}/small", plan=plan), build)
    >>> bool(torch.equal(again(x), small(x)))
    True
    """
    return open_folder(folder, build, trust_source=trust_source).model


def open_folder(folder: str | os.PathLike[str], build: Build | None = None, *, trust_source: bool = False) -> Saved:
    """`load`, with the edits, recipe and report beside the model."""
    root = Path(folder)
    manifest = read_manifest(root)
    for name, entry in manifest.files.items():
        check_file(root / name, entry)
    place = {name: root / stored for name, stored in manifest.names.items()}
    tensors = read_tensors(place[WEIGHTS])
    state = _state(root, manifest, tensors)
    n_numbers = sum(t.numel() * (8 if t.dtype == torch.uint8 else 1) for t in tensors.values())  # codes are packed
    edits = _read_edits(place[PLAN], n_numbers)
    check_spec(manifest.fingerprint.inputs)
    n_bytes = sum(t.numel() * t.element_size() for t in tensors.values())
    small = _hollow(manifest, edits, n_bytes, trust_source=trust_source) if build is None else None
    origin = "build()" if build is not None else f"'{manifest.source}'"
    if small is None:
        with torch.random.fork_rng():
            dense = _build(root, manifest, build, trust_source=trust_source, n_numbers=n_numbers)
        try:
            small = edits.replay(dense)
        except (PlanError, ConfigError, RegistryError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise FileError(f"The plan in '{root}' does not fit the model of {origin}: {error}") from error
    model = fill(small, state, str(place[WEIGHTS])).eval()
    _check_fingerprint(model, manifest, root, origin)
    return Saved(
        model,
        edits,
        manifest,
        recipe=read_text(place[RECIPE]) if RECIPE in place else None,
        report=_json(place[REPORT]) if REPORT in place else None,
    )


def _build(root: Path, manifest: Manifest, build: Build | None, *, trust_source: bool, n_numbers: int) -> nn.Module:
    if build is not None:
        try:
            return build()
        except Exception as error:  # the caller's code: anything may come out of it
            raise FileError(f"build() failed while loading '{root}': {type(error).__name__}: {error}") from error
    if manifest.source is None:
        raise FileError(
            f"'{root}' was saved without a source, so its architecture ({manifest.class_name}) is not known."
            " Pass a function that builds it: load(folder, build)."
        )
    try:
        if parse_source(manifest.source).runs_code and not trust_source:
            raise FileError(
                f"'{root}' names the source '{manifest.source}', and building it would run that code. Pass a function"
                " that builds it, load(folder, build), or trust_source=True (--trust-source) if you trust the folder."
            )
        _check_scale(manifest.source, n_numbers)
        return build_model(manifest.source)
    except SecateurError as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"The source stored in '{root}' can't be built: {error}") from error


def _hollow(manifest: Manifest, edits: Edits, n_bytes: int, *, trust_source: bool) -> nn.Module | None:
    """The model after all edits, its tensors zero, where it can be had without memory for the dense one; else None.

    The shapes that the edits leave say how many numbers each tensor has. No form of storage gives more of them than
    `CODES_PER_BYTE` for a byte, so the memory that they take is bounded by the file, whatever the source says.

    Raises:
        FileError: the file can't hold so many numbers.
    """
    if manifest.source is None:
        return None
    try:
        if parse_source(manifest.source).runs_code and not trust_source:
            return None
        with torch.random.fork_rng(), torch.device("meta"):
            dense = build_model(manifest.source)
        small = edits.replay(dense)
        state = small.state_dict()
    except Exception:  # code that reads values, which the meta device has not; what is wrong otherwise shows again
        return None
    tensors = distinct(named_tensors(small))
    if any(key not in state for key in named_tensors(small)):
        return None  # a tensor outside the state dict has values that only the constructor knows
    if (size := sum(t.numel() for t in tensors.values())) > CODES_PER_BYTE * n_bytes:
        raise FileError(
            f"'{manifest.source}' and its plan have {size:,} numbers, its file {n_bytes:,} bytes. {_REFUSE}"
        )
    return copy_around(small, {key: like(t, torch.zeros_like(t, device="cpu")) for key, t in tensors.items()})


def _check_scale(source: str, n_numbers: int) -> None:
    """Refuse an architecture out of all proportion to its file (`?width=1000000`), before memory is taken for it."""
    try:
        with torch.device("meta"):
            size = sum(p.numel() for p in build_model(source).parameters())
    except ConfigError:  # some constructors read values, which the meta device has not; then the real build decides
        return
    if size > max(MAX_DENSE, MAX_SHRINK * n_numbers):
        raise FileError(f"'{source}' has {size:,} parameters but its file {n_numbers:,} numbers. {_REFUSE}")


def _state(root: Path, manifest: Manifest, tensors: dict[str, torch.Tensor]) -> State:
    if strange := [key for key, first in manifest.tied.items() if first not in tensors or key in tensors]:
        raise FileError(f"'{root}' ties '{strange[0]}' to a tensor that it does not hold. Save the model again.")
    state = State(tensors, manifest.tied, manifest.constants)
    if "+".join(state.dtypes) != manifest.dtype:
        raise FileError(f"'{root}' holds {'+'.join(state.dtypes)}, but says {manifest.dtype}. Save the model again.")
    return state


def _read_edits(path: Path, n_numbers: int) -> Edits:
    """Read edits after a look at their sizes: one short run of kept indices may stand for any number of them."""
    text = read_text(path)
    try:
        data = json.loads(text)
        for table in _tables(data):
            keep = table.get("keep")
            if isinstance(keep, list) and sum(stop - start for start, stop in keep) > max(n_numbers, 1):
                raise FileError(f"'{path}' keeps more units than '{WEIGHTS}' holds numbers. Don't load this folder.")
            if any(part.startswith("__") for part in str(table.get("path", "")).split(".")):
                raise FileError(
                    f"'{path}' would change {table['path']!r}, which is no number of a model. Don't load it."
                )
        return Edits.from_json(text)
    except (ValueError, TypeError, RecursionError, PlanError) as error:
        raise FileError(f"'{path}' is not a plan: {error}") from error


def _tables(data: Any) -> Iterator[Mapping[str, Any]]:
    stack = [data]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield part
            stack += part.values()
        elif isinstance(part, list):
            stack += part


def _json(path: Path) -> Any:
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise FileError(f"'{path}' is not JSON: {error}. Save the model again.") from error


def _check_fingerprint(model: nn.Module, manifest: Manifest, root: Path, origin: str) -> None:
    stored = manifest.fingerprint
    try:
        now = take_fingerprint(model, stored.inputs, seed=stored.seed)
        wrong = differences(stored, now, tuple(manifest.dtype.split("+")))
    except FileError:
        raise
    except Exception as error:  # the model's own forward: anything may come out of it
        wrong = [f"its forward fails: {type(error).__name__}: {error}"]
    if wrong:
        raise FileError(
            f"The model in '{root}' does not compute what it did when it was saved: {'; '.join(wrong)}."
            f" Its weights are intact; {origin} builds another architecture, or its code changed."
        )
