"""Configs of Transformers that count blocks: found by rebuilding the model from another config. Nothing is believed."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from secateur.depth.edit import Numbers, Removal
from secateur.frameworks.huggingface_model import build
from secateur.tensors import copy_around, distinct, like, modules_of, named_tensors

_PLAIN = (bool, int, float, str, list, type(None))


def count(model: nn.Module, edit: Removal, holder: str, indices: tuple[int, ...]) -> Removal | str:
    """The edit that also takes these blocks out of a list, where the config counts it, or why it can't be counted.

    A number of the config that equals the length of the list is lowered, and lists of that length beside it are cut
    along. The model that Transformers builds from that config must have the tensors of the smaller one. Plain
    attributes that differ from those of a model built from the old config (`layer_idx`) follow; whether the blocks
    still compute the same with them is for the caller to try.

    Args:
        model: the model before this edit.
        edit: what was done already; its lists are not this one.
    """
    config: Any = getattr(model, "config", None)
    members = model.get_submodule(holder)
    if not hasattr(config, "to_dict") or getattr(type(model), "config_class", None) is None:
        return "no config counts its blocks"
    if not isinstance(members, nn.ModuleList):
        return "it is no ModuleList"
    if len(indices) == len(members):
        return "nothing of it would be left"
    tensors = distinct(named_tensors(model))
    shell = copy_around(model, {key: like(t, torch.empty_like(t, device="meta")) for key, t in tensors.items()})
    before: Any = edit.replay(shell)
    for changes in _options(before.config, len(members), indices):
        trial = replace(edit, lists={**edit.lists, holder: indices}, numbers=(*edit.numbers, *changes))
        followers = _followers(before, trial.replay(shell), holder, indices)
        if followers is not None:
            return replace(trial, numbers=(*trial.numbers, *followers))
    return "no number of its config, lowered, gives this model"


def _options(config: Any, n: int, indices: tuple[int, ...]) -> Iterator[Numbers]:
    """What may follow: each number that is n, with every list of n items beside it, those named for layers first."""
    found: list[tuple[bool, Numbers]] = []
    for path, holder in _configs(config, "config"):
        lists = [
            ("", f"{path}.{name}", [item for i, item in enumerate(value) if i not in indices])
            for name, value in vars(holder).items()
            if isinstance(value, list | tuple) and len(value) == n
        ]
        for name, value in vars(holder).items():
            if type(value) is int and value == n:
                found.append(("layer" not in name, (("", f"{path}.{name}", n - len(indices)), *lists)))
    return (changes for _, changes in sorted(found, key=lambda pair: pair[0]))


def _configs(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, config
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _configs(value, f"{path}.{name}")


def _followers(before: Any, after: Any, holder: str, indices: tuple[int, ...]) -> Numbers | None:
    """Attributes that the new config sets otherwise than the old one, or None where it does not give this model."""
    try:
        old, new = (build(type(model), copy.deepcopy(model.config)) for model in (before, after))
    except Exception:  # code of Transformers: anything may come out of numbers that it does not expect
        return None
    if {key: t.shape for key, t in after.state_dict().items()} != {key: t.shape for key, t in new.state_dict().items()}:
        return None
    tables = named_tensors(old)
    for key, t in named_tensors(new).items():  # rotary frequencies and the like
        if not t.is_meta and not (key in tables and torch.equal(t, tables[key])):
            return None
    originals = dict(modules_of(old))
    kept = [i for i in range(len(originals[holder]._modules)) if i not in indices]
    names = {f"{holder}.{i}": f"{holder}.{place}" for i, place in enumerate(kept)}
    found = []
    for fqn, module in modules_of(new):
        start = next((s for s in names if f"{fqn}.".startswith(f"{s}.")), "")
        original = originals[names.get(start, "") + fqn.removeprefix(start)]
        for name, value in vars(module).items():
            if name[:1] != "_" and isinstance(value, _PLAIN) and value != vars(original).get(name):
                found.append((fqn, name, value))
    return tuple(found)
