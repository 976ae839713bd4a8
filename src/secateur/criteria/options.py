"""The small typed options that several criteria share: which roles count, and the scale of scores across groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from secateur.criteria.base import ROLES, Context, Criterion
from secateur.errors import ConfigError, GroupError

if TYPE_CHECKING:
    from secateur.dims.groups import Group

Normalize = Literal["none", "mean", "max"]


def _by(reduce: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def divide(scores: Tensor) -> Tensor:
        scale = reduce(scores)
        return scores / scale if scale > 0 else scores  # a group of zeros stays a group of zeros

    return divide


NORMALIZERS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda scores: scores,
    "mean": _by(lambda scores: scores.mean()),
    "max": _by(lambda scores: scores.max()),
}


def normalized(scores: Tensor, how: Normalize) -> Tensor:
    """Put one group's scores on a scale that other groups share.

    none: s[c]. mean: s[c] / mean over d of s[d]. max: s[c] / max over d of s[d]. Scores are non-negative; the order
    inside the group never changes, and scores that are all zero stay zero.

    >>> import torch
    >>> normalized(torch.tensor([1.0, 3.0]), "mean")
    tensor([0.5000, 1.5000])
    """
    return NORMALIZERS[how](scores)


def check_choice(field: str, value: object, known: Iterable[str]) -> None:
    """Raise ConfigError unless `value` is one of `known`."""
    names = list(known)
    if value not in names:
        raise ConfigError(f"{field}={value!r} is unknown. Choose one of: {', '.join(names)}.")


def check_roles(roles: object) -> None:
    """Raise ConfigError unless `roles` is a tuple of member roles with at least one entry."""
    if not isinstance(roles, tuple) or not roles:
        raise ConfigError(f"roles={roles!r} is not a tuple of roles. Choose from: {', '.join(ROLES)}.")
    for role in roles:
        check_choice("roles", role, ROLES)


def check_fallback(fallback: object) -> None:
    """Raise ConfigError unless `fallback` is a criterion or None."""
    if fallback is not None and not isinstance(fallback, Criterion):
        raise ConfigError(f"fallback={fallback!r} is not a criterion. Pass one such as L2(), or None.")


def slices_of(group: Group, context: Context, roles: tuple[str, ...]) -> list[Tensor]:
    """Return `context.slices`; GroupError where the group has no member of these roles."""
    if slices := context.slices(group, roles):
        return slices
    raise GroupError(
        f"Group '{group.name}' has no member of roles {', '.join(roles)}; "
        f"it has {', '.join(sorted({member.role for member in group.members})) or 'none at all'}. "
        "Add one of these to roles."
    )
