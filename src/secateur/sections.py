"""Sections of TOML and the frozen dataclasses that they stand for: keys are fields, notes come from the code."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any

from secateur.allocate import make_method
from secateur.allocate.methods import ALLOCATIONS
from secateur.compensation.config import CompensateConfig, ReconstructConfig
from secateur.criteria import from_dict, make_criterion, to_dict
from secateur.errors import ConfigError, SecateurError
from secateur.files.decode import DecodeError, check_keys, decode
from secateur.planning import PruneConfig
from secateur.train.config import TrainConfig


def dataclass_in(hint: Any) -> Any:
    """The dataclass of a hint such as `TrainConfig | None`; the hint itself where there is none."""
    return next((kind for kind in typing.get_args(hint) if dataclasses.is_dataclass(kind)), hint)


def read_section(kind: Any, table: Any, where: str) -> Any:
    """Turn a section into its dataclass, strictly; a field that is a dataclass itself is a section inside.

    Raises:
        DecodeError: no section, an unknown key, or a value of another type.
        ConfigError: a value out of range.
    """
    if not isinstance(table, Mapping):
        raise DecodeError(f"{where} is {table!r}, but must be a section: [{where}]")
    hints = typing.get_type_hints(kind)
    fields = [f.name for f in dataclasses.fields(kind)]
    check_keys(table, fields, f"[{where}]")
    values = {}
    for key, value in table.items():
        place, inner = f"{where}.{key}", dataclass_in(hints[key])
        if (reader := _READERS.get((kind, key))) is not None:
            values[key] = reader(value)
        elif dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            values[key] = read_section(inner, value, place)
        else:
            values[key] = decode(hints[key], value, place)
    try:
        return kind(**values)
    except TypeError as error:
        raise DecodeError(f"[{where}] can't be read: {error}") from error
    except SecateurError as error:
        raise ConfigError(f"[{where}] {error}") from error


def write_section(value: Any, where: str, *, is_listed: bool = False, first: str = "") -> list[str]:
    """The lines of a section, with what the code says about each field; sections inside follow it.

    Args:
        is_listed: one of several sections of that name, `[[where]]`.
        first: a line that comes before the fields.
    """
    lines = [f"[[{where}]]" if is_listed else f"[{where}]", *([first] if first else [])]
    notes, inside = field_notes(type(value)), []
    for f in dataclasses.fields(value):
        found = getattr(value, f.name)
        plain = _plain(type(value), f.name, found)
        if dataclasses.is_dataclass(plain):
            inside += write_section(plain, f"{where}.{f.name}")
            continue
        if note := notes.get(f.name):
            lines.append(f"# {note}")
        lines.append(f"# {f.name} is unset" if plain is None else f"{f.name} = {_toml(plain)}")
    return lines + inside


def _read_criterion(value: Any) -> Any:
    return from_dict(value) if isinstance(value, Mapping) else make_criterion(decode(str, value, "prune.criterion"))


def _read_method(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return make_method(decode(str, value, "prune.method"))
    settings = dict(value)
    kind = ALLOCATIONS[decode(str, settings.pop("name", None), "prune.method.name")]
    return decode(kind, settings, "prune.method", is_partial=True)


def _read_augment(value: Any) -> Any:
    return TrainConfig.from_dict({"augment": decode(dict[str, Any], value, "augment")}).augment


def _read_regularizers(value: Any) -> Any:
    tables = decode(tuple[dict[str, Any], ...], value, "regularizers")
    return TrainConfig.from_dict({"regularizers": tables}).regularizers


def _read_reconstruct(value: Any) -> Any:
    if value is False:
        return None
    return decode(ReconstructConfig, value, "compensate.reconstruct", is_partial=True)


_READERS: dict[tuple[Any, str], Callable[[Any], Any]] = {
    (PruneConfig, "criterion"): _read_criterion,
    (PruneConfig, "method"): _read_method,
    (TrainConfig, "augment"): _read_augment,
    (TrainConfig, "regularizers"): _read_regularizers,
    (CompensateConfig, "reconstruct"): _read_reconstruct,
}


def _plain(kind: type, name: str, value: Any) -> Any:
    """A field's value as TOML has it."""
    if (kind, name) == (PruneConfig, "criterion"):
        return to_dict(make_criterion(value))
    if (kind, name) == (PruneConfig, "method"):
        method = make_method(value)
        return {"name": method.name, **dataclasses.asdict(method)}
    if name == "augment" and value is not None:
        return value.to_dict()
    if name == "regularizers":
        return [part.to_dict() for part in value]
    if (kind, name) == (CompensateConfig, "reconstruct"):
        return False if value is None else dataclasses.asdict(value)
    return value


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    return "[" + ", ".join(map(_toml, value)) + "]"


def field_notes(kind: type) -> dict[str, str]:
    """Return what the code says about each field of a dataclass: the comment on its line, or its entry under `Args:`.

    >>> from secateur.allocate import Budget
    >>> field_notes(Budget)["macs"]
    'multiply-accumulates of the whole model.'
    """
    notes: dict[str, str] = {}
    for owner in reversed(kind.__mro__):
        if dataclasses.is_dataclass(owner):
            entries = re.findall(
                r"^ {4,8}(\w[\w, ]*): (.+(?:\n {8,12}\S.*)*)", inspect.cleandoc(owner.__doc__ or ""), re.M
            )
            for names, text in entries:
                notes |= {name.strip(): " ".join(text.split()) for name in names.split(",")}
            notes |= dict(re.findall(r"^ {4}(\w+): .*?  # (.+)$", inspect.getsource(owner), re.M))
    return notes
