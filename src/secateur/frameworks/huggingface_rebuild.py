"""A model of Transformers rebuilt from a `config.json`, held against the planned one: nothing is believed."""

from __future__ import annotations

import copy
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from secateur.capture import capture
from secateur.frameworks.huggingface_fields import compare_programs
from secateur.frameworks.huggingface_model import build
from secateur.tensors import Inputs, named_tensors


@dataclass(frozen=True)
class Mismatch:
    """Why a rebuilt model is not the planned one.

    `is_refused`: `from_pretrained` raises for the planned weights, since their shapes are others, or there is no model.
    Where it is False, that would load them into something else.
    """

    text: str
    is_refused: bool

    def __str__(self) -> str:
        return self.text


def rebuild(cls: Any, data: Mapping[str, Any]) -> nn.Module:
    """The model that a `config.json` describes, on the meta device."""
    return build(cls, cls.config_class.from_dict(copy.deepcopy(dict(data))))


def mismatch(cls: Any, data: Mapping[str, Any], small: nn.Module, inputs: Inputs) -> Mismatch | None:
    """Say where the model that `data` describes is not `small`, the planned one; None where it is the same."""
    try:
        fresh = rebuild(cls, data)
    except Exception as error:  # code of Transformers: anything may come out of it
        return Mismatch(_in_a_line(error), True)
    mine, theirs = named_tensors(small), named_tensors(fresh)
    odd = [key for key in sorted(mine.keys() | theirs.keys()) if _shape(mine, key) != _shape(theirs, key)]
    if odd:
        saved = small.state_dict().keys() & fresh.state_dict().keys()  # of what is missing it only warns
        there, planned = (_shape(tensors, odd[0]) or "missing" for tensors in (theirs, mine))
        return Mismatch(f"'{odd[0]}' is {there} there, the plan says {planned}", not saved.isdisjoint(odd))
    for key, a in mine.items():
        if not a.is_meta and not theirs[key].is_meta and not torch.equal(a, theirs[key]):
            return Mismatch(f"the table '{key}' has other values there", False)
    try:
        text = compare_programs(capture(small, inputs), capture(fresh, inputs))
    except Exception as error:
        text = _in_a_line(error)
    return None if text is None else Mismatch(text, False)


def _shape(tensors: Mapping[str, torch.Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(tensors[key].shape) if key in tensors else None


def _in_a_line(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
