"""Saving a model as a folder that appears whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur._version import __version__
from secateur.coding import Code, codings_of
from secateur.edits import Edit, Edits, Prune
from secateur.errors import FileError, SecateurError
from secateur.files.atomic import new_folder
from secateur.files.compact import SUFFIX, squeeze
from secateur.files.fingerprint import Fingerprint, cast_spec, check_spec, take_fingerprint
from secateur.files.manifest import MANIFEST, OPTIONAL, PLAN, RECIPE, REPORT, REQUIRED, WEIGHTS, Manifest, entry_of
from secateur.files.state import State, fill, state_of, write_tensors
from secateur.plans import Plan
from secateur.sources import build_model
from secateur.specs import to_spec
from secateur.tensors import Inputs, named_tensors


def save(
    small: nn.Module,
    folder: str | os.PathLike[str],
    *,
    plan: Plan | Edits,
    source: str | None = None,
    recipe: str | None = None,
    report: Mapping[str, Any] | None = None,
    inputs: Inputs | None = None,
    overwrite: bool = False,
    is_compact: bool = False,
) -> Path:
    """Save a pruned model: weights, plan, and a fingerprint of what it computes. No pickle, no code.

    Args:
        small: what `apply` gave, fine-tuned or not, in any dtype.
        folder: it must not exist, unless `overwrite`; then it must be a saved model and nothing else.
        plan: from the architecture that `source` (or the caller of `load`) builds to `small`; or several edits.
        source: how to build that architecture, such as "torchvision:resnet18"; it is built once to see that it fits.
        recipe, report: TOML text and JSON data to keep along.
        inputs: example inputs for the fingerprint; only shapes and dtypes are kept. By default the plan's.
        overwrite: put it in place of a model that was saved there.
        is_compact: the fewest bytes: files are squeezed by LZMA, which people can't read and large models wait for.
    Returns:
        The folder.
    Raises:
        FileError: the model is not what the plan makes, the source builds another one, or the system refuses to write.
            What was there is untouched, and nothing new is left behind.

    >>> import tempfile, secateur
    >>> net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> plan = secateur.plan(net, torch.zeros(1, 3), secateur.Budget(width=0.5))
    >>> with tempfile.TemporaryDirectory() as there:
    ...     saved = save(secateur.apply(net, plan), f"{there}/small", plan=plan)
    ...     sorted(path.name for path in saved.iterdir())
    ['model.safetensors', 'plan.json', 'secateur.json']
    """
    target = Path(os.path.abspath(folder))
    check_target(target, overwrite=overwrite)
    edits = Edits.of(plan)
    _check_planned(small, edits)
    state = state_of(small)
    fingerprint = _fingerprint(small, edits.inputs if inputs is None else to_spec(inputs))
    if source is not None:
        _check_source(source, edits, state)
    about = None if report is None else json.dumps(report, indent=1, allow_nan=False) + "\n"
    texts = {PLAN: edits.to_json(), RECIPE: recipe, REPORT: about}
    with new_folder(target, overwrite=overwrite) as partial:
        _write_files(partial, state, texts, is_compact=is_compact)
        manifest = Manifest(
            secateur=__version__,
            source=source,
            class_name=type(small).__qualname__,
            dtype="+".join(state.dtypes),
            tied=state.tied,
            constants=state.constants,
            files={path.name: entry_of(path) for path in sorted(partial.iterdir())},
            fingerprint=fingerprint,
        )
        (partial / MANIFEST).write_bytes(manifest.to_json().encode())
    return Path(folder)


def _write_files(folder: Path, state: State, texts: Mapping[str, str | None], *, is_compact: bool) -> None:
    """The weights, and those of the texts that there are."""
    ending = SUFFIX if is_compact else ""
    write_tensors(state, folder / f"{WEIGHTS}{ending}")
    for name, text in texts.items():
        if text is not None:
            (folder / f"{name}{ending}").write_bytes(squeeze(text.encode()) if is_compact else text.encode())


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise FileError where a folder can't be saved at `target`: before the long work, not after it."""
    if not target.name:
        raise FileError(f"'{target}' can't be replaced. Give the name of a new folder.")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileError(f"'{target}' exists. Choose another folder, or overwrite it (overwrite=True, --force).")
    if target.is_symlink() or not target.is_dir():
        raise FileError(f"'{target}' is not a folder, so it isn't overwritten. Choose another place.")
    found, names = {path.name for path in target.iterdir()}, (*REQUIRED, *OPTIONAL)
    if found and MANIFEST not in found:
        raise FileError(f"'{target}' is no saved model, so it isn't overwritten. Choose another folder.")
    if strange := sorted(found - {MANIFEST, *names, *(name + SUFFIX for name in names)}):
        raise FileError(
            f"'{target}' also holds '{strange[0]}', which Secateur did not write, so it isn't overwritten."
            " Move that away or choose another folder."
        )


def _check_planned(small: nn.Module, edits: Edits) -> None:
    """The codings must be those of the edits, and what a last plan changed must be as it left it.

    Edits that take modules away or rename them (`layers.3` becomes `layers.2`) hide what was coded before them.
    """
    recent: list[Edit] = list(takewhile(lambda edit: isinstance(edit, Code | Prune), reversed(edits.steps)))
    is_all = len(recent) == len(edits.steps)
    planned: dict[str, str] = {}
    for edit in reversed(recent):
        planned |= {key: kind for key, (kind, _) in edit.weights.items()} if isinstance(edit, Code) else {}
    coded = {key: stack[-1].kind for key, stack in codings_of(small).items()}
    suspects = planned.keys() | coded.keys() if is_all else planned.keys()
    if wrong := sorted(key for key in suspects if planned.get(key) != coded.get(key)):
        raise FileError(
            f"'{wrong[0]}' is {coded.get(wrong[0], 'not coded')} in {type(small).__name__}, but"
            f" {planned.get(wrong[0], 'not coded')} in the edits. Pass the edits of all steps, and a model that is"
            " not baked."
        )
    last, tensors = edits.steps[-1] if edits.steps else None, named_tensors(small)
    if not isinstance(last, Prune):
        return
    for key in last.plan.tensors:
        shape = tuple(tensors[key].shape) if key in tensors else None
        if shape != last.plan.shape_after(key):
            raise FileError(
                f"{type(small).__name__} is not what this plan makes: '{key}' is {shape or 'missing'}, the plan leaves"
                f" {last.plan.shape_after(key)}. Pass the model that secateur.apply gave, with its own plan."
            )


def _fingerprint(small: nn.Module, spec: Any) -> Fingerprint:
    """Take a model that was converted to another dtype after planning on inputs of that dtype."""
    check_spec(spec)
    spec = json.loads(json.dumps(spec))  # as loading will see it
    dtypes = {p.dtype for p in small.parameters() if p.is_floating_point()}
    candidates = [spec, *([cast_spec(spec, dtypes.pop())] if len(dtypes) == 1 else [])]
    fault: Exception | None = None
    for candidate in candidates:
        try:
            return take_fingerprint(small, candidate)
        except Exception as error:  # the user's forward: anything may come out of it
            fault = error
    raise FileError(
        f"{type(small).__name__} fails on the plan's example inputs: {type(fault).__name__}: {fault}."
        " Pass inputs= that it takes."
    ) from fault


def _check_source(source: str, edits: Edits, state: State) -> None:
    with torch.random.fork_rng():
        dense = build_model(source)
    try:
        fill(edits.replay(dense), state, "the model to save")
    except SecateurError as error:
        raise FileError(
            f"'{source}' does not build the architecture that was pruned: {error}"
            " Give the source of the dense model, or leave it out."
        ) from error
