"""Folders of safetensors shards, read one tensor at a time under the model's keys, written one shard at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur.errors import FileError
from secateur.files.state import write_flat

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
Origins = list[tuple[str, str]]  # (key in the files, pattern that a converter knows it by)


@dataclass
class _Shards:
    """Reads keys of many files; one file is open at a time, so that no more than one is mapped."""

    folder: Path
    file_of: dict[str, str]
    name: str = ""
    file: Any = None

    def read(self, key: str) -> Tensor:
        """One tensor. Raises FileError where its file is damaged."""
        try:
            if self.file_of[key] != self.name:
                self.file = None
                self.file = safe_open(self.folder / self.file_of[key], framework="pt", device="cpu")
                self.name = self.file_of[key]
            tensor: Tensor = self.file.get_tensor(key)
            return tensor
        except (SafetensorError, OSError, RuntimeError) as error:
            raise _damaged(self.folder / self.file_of[key], error) from error


@dataclass
class Checkpoint(Mapping[str, Tensor]):
    """The tensors of a folder by the model's keys, each read when it is asked for and not kept.

    `origins` names, for each key of the model, what it is made of: one tensor of the files, or several that the
    converter that Transformers has for that model puts together (the experts of a layer).
    """

    shards: _Shards
    origins: dict[str, Origins]
    convert: dict[str, Callable[[str, Callable[[str], Tensor]], Tensor]] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Tensor:
        if key in self.convert:
            return self.convert[key](key, self.shards.read)
        return self.shards.read(self.origins[key][0][0])

    def __iter__(self) -> Iterator[str]:
        """Keys in the order of the files, so that each file is opened once."""
        return iter(sorted(self.origins, key=lambda key: self.shards.file_of[self.origins[key][0][0]]))

    def __contains__(self, key: object) -> bool:
        return key in self.origins  # without reading it

    def __len__(self) -> int:
        return len(self.origins)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum((self.shards.folder / name).stat().st_size for name in set(self.shards.file_of.values()))

    @property
    def largest_shard(self) -> int:
        """Bytes of the largest file."""
        return max((self.shards.folder / name).stat().st_size for name in set(self.shards.file_of.values()))


def open_checkpoint(folder: Path, model: nn.Module) -> Checkpoint:
    """Find each tensor of a model's state dict in a folder's files; only their headers are read.

    Args:
        model: of Transformers, on any device; it says which keys are tied, and how older files are renamed.
    Raises:
        FileError: there are no safetensors files, they are damaged, or a tensor of the model is in none of them.
    """
    shards = _Shards(folder, _file_of(folder))
    origins, convert = _origins(shards, model)
    state = model.state_dict(keep_vars=True)
    distinct: dict[int, list[str]] = {}
    for key, tensor in state.items():
        distinct.setdefault(id(tensor), []).append(key)
    found: dict[str, Origins] = {}
    missing = []
    for names in distinct.values():
        here = next((key for key in names if key in origins), None)
        if here is None:
            missing.append(names[0])
            continue
        found[names[0]] = origins[here]
        if here in convert:
            convert[names[0]] = convert[here]
    if missing:
        raise FileError(
            f"The files in '{folder}' lack '{missing[0]}'{f' and {len(missing) - 1} more' * (len(missing) > 1)} of"
            f" {type(model).__name__}. Give a whole checkpoint of that class."
        )
    return Checkpoint(shards, found, {key: c for key, c in convert.items() if key in found})


def _file_of(folder: Path) -> dict[str, str]:
    index = folder / INDEX
    if index.is_file():
        try:
            names = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError, TypeError) as error:
            raise FileError(f"'{index}' is not an index of shards: {error}. Restore it from a copy.") from error
        if bad := [n for n in set(names.values()) if Path(n).name != n or not (folder / n).is_file()]:
            raise FileError(f"'{folder}' lacks the shard {bad[0]!r} that its index names. Restore it from a copy.")
        return dict(names)
    path = folder / SINGLE
    if not path.is_file():
        raise FileError(
            f"'{folder}' holds neither {SINGLE} nor {INDEX}. Pickles (.bin) are never read: load the model with"
            " Transformers and save_pretrained it first."
        )
    try:
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), SINGLE)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> FileError:
    return FileError(f"'{path}' is not a whole safetensors file: {error}. Restore it from a copy.")


def _origins(shards: _Shards, model: Any) -> tuple[dict[str, Origins], dict[str, Any]]:
    """What each key of the model is made of, by Transformers' own renamings and converters of that class."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    by_pattern = {pattern: c for c in converters for pattern in c.source_patterns}
    state = model.state_dict()
    origins: dict[str, Origins] = {}
    convert: dict[str, Any] = {}
    for key in sorted(shards.file_of, key=_natural):
        if key in state:
            origins[key] = [(key, "")]
            continue
        renamed, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, state)
        targets = [renamed]
        if pattern is not None:
            patterns = by_pattern[pattern].target_patterns
            targets = [renamed.replace(patterns[0], p) for p in patterns]
        for target in targets:
            origins.setdefault(target, []).append((key, pattern or ""))
            if pattern is not None:
                convert[target] = _converter(by_pattern[pattern], renamed, origins[target], model)
    return origins, convert


def _natural(key: str) -> list[tuple[int, str]]:
    """Experts are put together in the order of their numbers: 2 before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split(".")]


def _converter(transform: Any, layer: str, origins: Origins, model: Any) -> Callable[..., Tensor]:
    def convert(key: str, read: Callable[[str], Tensor]) -> Tensor:
        once = transform.copy(
            transform._original_source_patterns, transform._original_target_patterns, operations=transform.operations
        )
        for name, pattern in origins:
            once.add_tensor(layer, name, pattern, lambda name=name: read(name))
        made = once.convert(layer, model=model, config=model.config)[key]
        tensor: Tensor = made[0] if isinstance(made, list) else made
        return tensor

    return convert


def write_shards(tensors: Iterable[tuple[str, Tensor]], folder: Path, max_bytes: int) -> dict[str, int]:
    """Write tensors as they come into shards of at most `max_bytes` each (one tensor at least), with their index.

    Returns:
        {"shards": how many, "size_bytes": of all tensors}.
    """
    names: list[list[str]] = []
    total = size = 0
    pending: dict[str, Tensor] = {}
    for key, tensor in tensors:
        if pending and size + tensor.nbytes > max_bytes:
            names.append(_write(pending, folder, len(names)))
            size = 0
        pending[key] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    names.append(_write(pending, folder, len(names)))
    if len(names) == 1:
        (folder / _part(0)).rename(folder / SINGLE)
    else:
        final = [f"model-{i + 1:05}-of-{len(names):05}.safetensors" for i in range(len(names))]
        for i, name in enumerate(final):
            (folder / _part(i)).rename(folder / name)
        weight_map = {key: name for keys, name in zip(names, final, strict=True) for key in keys}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return {"shards": len(names), "size_bytes": total}


def _part(i: int) -> str:
    return f"part-{i}.safetensors"


def _write(pending: dict[str, Tensor], folder: Path, i: int) -> list[str]:
    keys = list(pending)
    write_flat({key: t.contiguous() for key, t in pending.items()}, folder / _part(i), {"format": "pt"})
    pending.clear()
    return keys


def cut(tensor: Tensor, keep: list[Tensor | None]) -> Tensor:
    """The kept indices of each axis, in memory of its own."""
    out = tensor
    for axis, index in enumerate(keep):
        if index is not None:
            out = out.index_select(axis, index)
    return out.clone(memory_format=torch.contiguous_format) if out is tensor else out
