"""Strict reading of plain data into dataclasses: what is unknown, missing or of another type is named."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any


class DecodeError(ValueError):
    """Data does not have the form of its dataclass; the text says where and what was expected."""


def decode(hint: Any, value: Any, where: str, *, is_partial: bool = False) -> Any:
    """Turn JSON or TOML data into what the type hint says.

    Args:
        hint: a dataclass, str, int, float, bool, None, a literal, unions, tuples and dicts of them, or Any.
        where: place of the value, for messages.
        is_partial: keys with a default may be left out; otherwise every key must be there.
    Raises:
        DecodeError: an unknown or missing key, or a value of another type.

    >>> decode(tuple[int, ...], [1, 2], "shape")
    (1, 2)
    >>> decode(int, "3", "config.seed")
    Traceback (most recent call last):
    secateur.files.decode.DecodeError: config.seed is '3', but must be a whole number
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _decode_union(args, value, where, is_partial)
    if origin is typing.Literal:
        if value not in args:
            raise DecodeError(f"{where} is {_shown(value)}, but must be {_described(hint)}")
        return value
    if dataclasses.is_dataclass(hint):
        return _decode_fields(hint, value, where, is_partial)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise DecodeError(f"{where} has {len(value)} entries, but must have {len(kinds)}")
        return tuple(decode(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(zip(kinds, value, strict=True)))
    if origin is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: decode(args[1], v, f"{where}[{key!r}]") for key, v in value.items()}
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    raise DecodeError(f"{where} is {_shown(value)}, but must be {_described(hint)}")


def _decode_union(kinds: tuple[Any, ...], value: Any, where: str, is_partial: bool) -> Any:
    if value is None and type(None) in kinds:
        return None
    errors = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return decode(kind, value, where, is_partial=is_partial)
        except DecodeError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise DecodeError(f"{where} is {_shown(value)}, but must be {' or '.join(map(_described, kinds))}")


def _decode_fields(kind: Any, value: Any, where: str, is_partial: bool) -> Any:
    if not isinstance(value, Mapping):
        raise DecodeError(f"{where} is {_shown(value)}, but must be a table of settings")
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind)}
    check_keys(value, list(fields), where)
    missing = [
        name
        for name, f in fields.items()
        if name not in value and not (is_partial and (f.default, f.default_factory) != (dataclasses.MISSING,) * 2)
    ]
    if missing:
        raise DecodeError(f"{where or 'the file'} lacks {', '.join(map(repr, missing))}")
    prefix = f"{where}." if where else ""
    return kind(**{n: decode(hints[n], v, f"{prefix}{n}", is_partial=is_partial) for n, v in value.items()})


def check_keys(value: Mapping[str, Any], known: list[str], where: str) -> None:
    """Raise DecodeError for a key that is not known, naming the nearest that is."""
    if unknown := [key for key in value if key not in known]:
        close = get_close_matches(str(unknown[0]), known, n=1, cutoff=0.5)
        hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(known) or 'none'}."
        raise DecodeError(f"{where or 'the file'} has an unknown key {str(unknown[0])!r}. {hint}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _described(hint: Any) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "unset"}
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " or ".join(map(repr, typing.get_args(hint)))
    return (
        words.get(hint)
        or {tuple: "a list", dict: "a table"}.get(origin or hint)
        or str(getattr(hint, "__name__", hint))
    )
