"""A name with arguments in one text, `name?key=value&key=value`: models, criteria and methods on the command line."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import fields
from typing import Any, TypeVar

from secateur.errors import ConfigError
from secateur.registry import Registry

T = TypeVar("T")


def read_call(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments, whose values are Python literals.

    Raises:
        ConfigError: what follows the "?" is no list of key=value, or a value is no literal.

    >>> read_call("top_n?n=16")
    ('top_n', {'n': 16})
    """
    name, mark, query = text.partition("?")
    if mark and not query:
        raise ConfigError(f"{text!r} ends in '?'. Give arguments as ?key=value&key=value, or leave it out.")
    return name, dict(_arguments(text, query))


def make(kinds: Registry[str, type[T]], text: str) -> T:
    """Return the registered dataclass of that name with these arguments as its fields.

    Raises:
        RegistryError: nothing of that name is registered.
        ConfigError: an argument is no field, or its value is refused.
    """
    name, arguments = read_call(text)
    kind = kinds[name]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    if unknown := [key for key in arguments if key not in known]:
        raise ConfigError(
            f"{kinds.kind.capitalize()} '{name}' has no {', '.join(map(repr, unknown))}. "
            f"Known: {', '.join(known) or 'nothing'}."
        )
    return kind(**arguments)


def _arguments(text: str, query: str) -> Iterable[tuple[str, Any]]:
    seen = set()
    for part in query.split("&") if query else ():
        key, equals, value = part.partition("=")
        if not equals or not key.isidentifier() or key in seen:
            raise ConfigError(f"{text!r}: {part!r} is not one key=value. Write ?key=value&key=value, each key once.")
        seen.add(key)
        try:
            yield key, ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:
            raise ConfigError(
                f"{text!r}: {key}={value} is no Python literal. Numbers stand alone, text in quotes: {key}='{value}'."
            ) from error
