"""A model's tensors as a file holds them, and back: tied tensors once, dtypes kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur.coding import pack_state, unpack_state
from secateur.errors import FileError
from secateur.files.compact import SUFFIX, narrow, read_bytes, squeeze, widen
from secateur.tensors import copy_around, named_tensors


@dataclass(frozen=True)
class State:
    """Tensors of the state dict, each once; its further names; and dtypes of the tensors outside the state dict."""

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    constants: dict[str, str]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Floating dtypes, sorted."""
        kinds = {t.dtype for t in self.tensors.values() if t.is_floating_point() or t.is_complex()}
        return tuple(sorted(str(kind).removeprefix("torch.") for kind in kinds))


def state_of(model: nn.Module) -> State:
    """Collect a model's tensors; nothing is copied, and coded weights are packed.

    Raises:
        FileError: the state dict holds something that is no tensor of the model, or tensors without values.
    """
    named, keys = named_tensors(model), list(model.state_dict())
    if strange := [key for key in keys if key not in named]:
        raise FileError(
            f"'{strange[0]}' in the state dict of {type(model).__name__} is no parameter or buffer: it can't be saved."
            " Register it as a buffer."
        )
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    places: dict[tuple[object, ...], str] = {}
    for key in keys:
        t = named[key].detach()
        if t.is_meta:
            raise FileError(f"'{key}' is on the meta device and has no values. Load the weights before saving.")
        place = (t.untyped_storage()._cdata, t.storage_offset(), t.shape, t.stride(), t.dtype)
        first = places.setdefault(place, key) if t.numel() else key
        if first == key:
            tensors[key] = t
        else:
            tied[key] = first
    tensors = pack_state(model, tensors)
    constants = {key: str(t.dtype).removeprefix("torch.") for key, t in named.items() if key not in set(keys)}
    return State(tensors, tied, constants)


def write_tensors(state: State, path: Path) -> None:
    """Write a safetensors file and read its header back: a short write is an error here, not later.

    A path that ends in `.xz` gets the compact form (see `secateur.files.compact`).

    Raises:
        OSError: the system refused something.
    """
    from safetensors.torch import save

    storages: set[int] = set()
    flat: dict[str, Tensor] = {}
    for key, tensor in state.tensors.items():
        t = tensor.cpu().contiguous()
        place = t.untyped_storage()._cdata
        flat[key] = t.clone() if place in storages else t  # views of one memory are stored as separate tensors
        storages.add(place)
    if path.suffix == SUFFIX:
        path.write_bytes(squeeze(save(narrow(flat))))
        return
    write_flat(flat, path)


def write_flat(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write tensors that share no memory, and read the header back.

    Raises:
        OSError: the system refused something; safetensors has an error of its own for that.
    """
    from safetensors.torch import save_file

    try:
        save_file(tensors, path, metadata)
        with safe_open(path, framework="pt") as file:
            assert set(file.keys()) == set(tensors)
    except SafetensorError as error:
        raise OSError(_code(error), f"{error}") from error


def _code(error: SafetensorError) -> int:
    """The system's error number inside a message such as "… No space left on device (os error 28)"."""
    number = str(error).rpartition("os error ")[2].partition(")")[0]
    return int(number) if number.isdigit() else 0


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file, compact or not, without leaving it mapped.

    Raises:
        FileError: it is not one, or not whole.
    """
    from safetensors.torch import load

    try:
        if path.suffix == SUFFIX:
            return widen(load(read_bytes(path)))
        with safe_open(path, framework="pt", device="cpu") as file:
            return {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise FileError(
            f"'{path}' is not a whole safetensors file: {error}. Give another, or save it again."
        ) from error


def fill(small: nn.Module, state: State, origin: str) -> nn.Module:
    """Return the model with the tensors of a file in place of its own. Strict: same keys, shapes and kinds.

    Args:
        small: the replayed architecture; its tensors may be on the meta device, those outside the state dict excepted.
        origin: the file, for messages.
    Raises:
        FileError: a key, shape, kind or tie differs; all of them are listed.
    """
    state = State(unpack_state(small, state.tensors), state.tied, state.constants)
    named = named_tensors(small)
    keys = set(small.state_dict())
    given = {**state.tensors, **{key: state.tensors[first] for key, first in state.tied.items()}}
    wrong = []
    for key in sorted(keys & given.keys()):
        mine, theirs = named[key], given[key]
        if mine.shape != theirs.shape:
            wrong.append(f"'{key}' is {list(theirs.shape)} in the file, {list(mine.shape)} in the model")
        elif mine.is_floating_point() != theirs.is_floating_point():
            wrong.append(f"'{key}' is {theirs.dtype} in the file, {mine.dtype} in the model")
    wrong += [f"'{key}' is missing in the file" for key in sorted(keys - given.keys())]
    wrong += [f"the model has no '{key}'" for key in sorted(given.keys() - keys)]
    owners: dict[int, str] = {}
    for key in sorted(keys & given.keys()):
        first = owners.setdefault(id(named[key]), key)
        if given[first] is not given[key]:
            wrong.append(f"the model ties '{key}' to '{first}', the file holds two tensors")
    outside = {key: t for key, t in named.items() if key not in keys}
    wrong += [f"tensor attribute '{key}' differs" for key in sorted(outside.keys() ^ state.constants.keys())]
    wrong += [f"tensor attribute '{key}' is on the meta device" for key, t in outside.items() if t.is_meta]
    if wrong:
        more = f"; and {len(wrong) - 6} more" if len(wrong) > 6 else ""
        raise FileError(
            f"The weights in '{origin}' do not fit the model: {'; '.join(wrong[:6])}{more}."
            " Build the architecture that they were saved from."
        )
    new = {key: _wrapped(named[key], given[key]) for key in keys}
    new |= {key: t.to(_dtype(state.constants[key])) for key, t in outside.items()}
    return copy_around(small, new)


def load_weights(model: nn.Module, path: Path) -> nn.Module:
    """Return the model with the weights of a safetensors file that anybody wrote; tied tensors may be there once.

    Raises:
        FileError: the file is none, or its keys, shapes or kinds are not the model's.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        raise FileError(
            f"'{path}' is no .safetensors file. Pickles are never read; convert the state dict with"
            " safetensors.torch.save_file first."
        )
    own, tensors = state_of(model), read_tensors(path)
    for key, first in own.tied.items():
        if key in tensors and first in tensors and torch.equal(tensors[key], tensors[first]):
            del tensors[key]
    tied = {key: first for key, first in own.tied.items() if key not in tensors and first in tensors}
    return fill(model, State(tensors, tied, own.constants), str(path))


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise FileError(f"{name!r} is no dtype. Restore the folder from a copy, or save the model again.")
    return dtype


def _wrapped(old: Tensor, data: Tensor) -> Tensor:
    placed = data if old.is_meta else data.to(old.device)
    return nn.Parameter(placed, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else placed
