"""A training run on disk: one safetensors file, replaced atomically, so that a kill leaves the old one or the new one.

Tensors are `model.<key>` and `optimizer.<i>.<name>`; everything else is strict JSON in the header, under "secateur".
Random numbers need no state: they are functions of (seed, epoch).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import FileError, TrainError
from secateur.files.atomic import new_file
from secateur.files.state import write_flat
from secateur.train.history import EpochRecord

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The scalars of a checkpoint."""

    config: dict[str, Any]  # TrainConfig.to_dict()
    n_samples: int
    epochs: tuple[EpochRecord, ...]


def save_checkpoint(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState) -> None:
    """Write the run; the file at `path` is at all times absent or whole.

    Raises:
        TrainError: the model's state holds something that is no tensor.
        FileError: the file cannot be written.
    """
    tensors, numbers = _flatten(model, optimizer)
    scalars = {
        "version": VERSION,
        "config": state.config,
        "n_samples": state.n_samples,
        "epochs": [vars(record) for record in state.epochs],
        "optimizer": numbers,
    }
    with new_file(path) as partial:
        write_flat(tensors, partial, {"secateur": json.dumps(scalars, allow_nan=False)})


def load_checkpoint_(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> RunState:
    """Put a saved run's weights and optimizer state into the given ones, in place, and return its scalars.

    Raises:
        FileError: the file is foreign, corrupt or of another version.
        TrainError: it is of another model.
    """
    tensors, scalars = _read(path)
    weights = {key.removeprefix("model."): t for key, t in tensors.items() if key.startswith("model.")}
    own = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: tuple(value.shape) for key, value in weights.items()}
    if own != theirs:
        differing = sorted(key for key in own.keys() | theirs.keys() if own.get(key) != theirs.get(key))
        raise TrainError(
            f"The checkpoint {path} is of another model: {len(differing)} entries differ, first {differing[:3]}."
            " Resume with the model that began, or choose another file."
        )
    try:
        entries: dict[int, dict[str, Any]] = {int(i): dict(names) for i, names in scalars["optimizer"].items()}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, i, name = key.split(".", 2)
                entries.setdefault(int(i), {})[name] = value
        state = RunState(
            config=scalars["config"],
            n_samples=scalars["n_samples"],
            epochs=tuple(EpochRecord(**record) for record in scalars["epochs"]),
        )
        optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise FileError(f"{path} is no whole checkpoint of this kind: {err!r}. Delete it to start afresh.") from err
    model.load_state_dict(weights)
    return state


def _flatten(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    for key, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise TrainError(f"'{key}' of the model's state is a {type(value).__name__}: it cannot be checkpointed.")
        tensors[f"model.{key}"] = value.detach().cpu().contiguous().clone()  # copies, so tied tensors are no trouble
    numbers: dict[str, Any] = {}
    for i, entry in optimizer.state_dict()["state"].items():
        plain = {name: value for name, value in entry.items() if not isinstance(value, Tensor)}
        numbers[str(i)] = plain
        for name in entry.keys() - plain.keys():
            tensors[f"optimizer.{i}.{name}"] = entry[name].detach().cpu().contiguous().clone()
    return tensors, numbers


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get("secateur")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as err:
        raise FileError(f"The checkpoint {path} cannot be read: {err}. Delete it to start afresh.") from err
    try:
        scalars = json.loads(text or "")
        version = scalars["version"]
    except (ValueError, TypeError, KeyError) as err:
        raise FileError(f"{path} is no checkpoint of Secateur. Choose another file.") from err
    if version != VERSION:
        raise FileError(f"{path} is a checkpoint of version {version}; this Secateur reads version {VERSION}.")
    return tensors, scalars
