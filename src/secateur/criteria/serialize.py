"""Criteria as plain data: what a recipe or a plan stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from secateur.criteria.base import CRITERIA, Criterion
from secateur.errors import ConfigError


def to_dict(criterion: Criterion) -> dict[str, object]:
    """Return the criterion's name and every field, as JSON types. `from_dict` gives an equal criterion back.

    Raises:
        ConfigError: the criterion is not registered (a function), or a field is not plain data.

    >>> to_dict(CRITERIA["random"]())
    {'name': 'random'}
    """
    if CRITERIA.get(criterion.name) is not type(criterion):
        raise ConfigError(
            f"Criterion '{criterion.name}' cannot be saved: {type(criterion).__name__} is not registered under that "
            f"name. Make it a frozen dataclass under @CRITERIA.register('{criterion.name}')."
        )
    return {"name": criterion.name} | {
        field.name: _encode(criterion.name, field.name, getattr(criterion, field.name)) for field in fields(criterion)
    }


def from_dict(data: Mapping[str, object]) -> Criterion:
    """Return the criterion that `to_dict` described. Fields that are left out take their defaults.

    Raises:
        ConfigError: `data` is no mapping, has no name, an unknown key or a value that does not fit.
        RegistryError: no criterion has that name.

    >>> from_dict({"name": "l1", "normalize": "none"}).normalize
    'none'
    >>> from_dict({"name": "l1", "power": 3})
    Traceback (most recent call last):
    secateur.errors.ConfigError: Criterion 'l1' has no field 'power'. Known: roles, normalize.
    """
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        raise ConfigError(f"{data!r} does not describe a criterion. Give it a name, for example {{'name': 'l2'}}.")
    kind = CRITERIA[str(data["name"])]
    known = [field.name for field in fields(kind)]
    unknown = [str(key) for key in data if key != "name" and key not in known]
    if unknown:
        raise ConfigError(
            f"Criterion '{data['name']}' has no field {', '.join(map(repr, unknown))}. "
            f"Known: {', '.join(known) or 'none, only name'}."
        )
    return kind(**{key: _decode(value) for key, value in data.items() if key != "name"})


def _encode(name: str, field: str, value: object) -> object:
    if isinstance(value, Criterion):
        return to_dict(value)
    if isinstance(value, tuple):
        return [_encode(name, field, item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ConfigError(f"Field '{field}' of criterion '{name}' holds {type(value).__name__}, which cannot be saved.")


def _decode(value: object) -> object:
    if isinstance(value, Mapping):
        return from_dict(value)
    return tuple(_decode(item) for item in value) if isinstance(value, (list, tuple)) else value
