"""What a criterion is, what it sees, and how every result is checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn

from secateur.errors import ConfigError, GroupError
from secateur.registry import Registry
from secateur.tensors import named_tensors

if TYPE_CHECKING:
    from secateur.dims.groups import Group, Member

# Roles of members whose values training sets. "statistic" (running mean, running variance) is measured, not learned.
LEARNED: tuple[str, ...] = ("producer", "reader", "bias", "scale", "shift", "other")
ROLES: tuple[str, ...] = (*LEARNED, "statistic")
NEEDS = frozenset({"gradients"})


@dataclass(frozen=True)
class Context:
    """What a criterion may look at: the model's tensors by state-dict key, and what was measured on data.

    Args:
        tensors: every parameter and buffer that a group's members name.
        gradients: of the loss, by parameter key, from `collect_gradients`; only for criteria that need them.
        generator: the source of randomness; it is read, never advanced.
        constants: keys of buffers and plain tensor attributes. Nobody learned them (rotary tables, masks), so criteria
            leave them out; members of role "statistic" are given to those who ask for that role.
    """

    tensors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] | None = None
    generator: torch.Generator | None = None
    constants: frozenset[str] = frozenset()

    @classmethod
    def of(
        cls,
        model: nn.Module,
        *,
        gradients: Mapping[str, Tensor] | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Return the context of a model: its parameters, buffers and tensor attributes, with what was measured.

        >>> sorted(Context.of(nn.BatchNorm1d(2)).constants)
        ['num_batches_tracked', 'running_mean', 'running_var']
        """
        tensors = named_tensors(model)
        learned = {key for key, _ in model.named_parameters(remove_duplicate=False)}
        return cls(tensors, gradients, generator, frozenset(tensors.keys() - learned))

    def slices(self, group: Group, roles: tuple[str, ...] | None = None) -> list[Tensor]:
        """Return the group's tensors, each as (size, k): row c holds all that unit c has in that member.

        Args:
            roles: members of other roles are left out, and so are constants; None means all members.
        Raises:
            GroupError: a key is missing, holds no data (meta device), or a view has not `group.size` rows.
        """
        return [_rows(group, member, self.tensors, "tensor") for member in self._members(group, roles)]

    def gradient_pairs(self, group: Group, roles: tuple[str, ...] | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return (weights, gradients) per member, both (size, k).

        A member of role "statistic" or "other" may be a buffer, which has no gradient: it is left out then.
        Raises:
            ConfigError: the context has no gradients.
            GroupError: a weight has no gradient, or one of another shape.
        """
        if self.gradients is None:
            raise ConfigError(
                f"Scoring group '{group.name}' takes gradients and the context has none. "
                "Pass Context(tensors, gradients=collect_gradients(model, batches))."
            )
        pairs = []
        for member in self._members(group, roles):
            if member.key not in self.gradients and member.role in ("statistic", "other"):
                continue
            weights = _rows(group, member, self.tensors, "tensor")
            gradients = _rows(group, member, self.gradients, "gradient")
            if weights.shape != gradients.shape:
                raise GroupError(
                    f"'{member.key}' has shape {tuple(self.tensors[member.key].shape)} and its gradient "
                    f"{tuple(self.gradients[member.key].shape)}. Collect gradients from the model that is scored."
                )
            pairs.append((weights, gradients))
        return pairs

    def _members(self, group: Group, roles: tuple[str, ...] | None) -> list[Member]:
        return [
            member
            for member in group.members
            if roles is None
            or (member.role in roles and (member.role == "statistic" or member.key not in self.constants))
        ]


@dataclass(frozen=True, kw_only=True)
class Criterion(ABC):
    """A rule that scores the units of one group. Its fields are its hyper-parameters.

    `name` is the key in `CRITERIA`; `needs` says what the context must hold, a subset of {"gradients"}.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def score(self, group: Group, context: Context) -> Tensor:
        """Return (group.size,) float32 without grad; larger = keep."""


CRITERIA: Registry[str, type[Criterion]] = Registry("criterion")


@dataclass(frozen=True, kw_only=True)
class FunctionCriterion(Criterion):
    """A user's function as a criterion. It cannot be saved: `to_dict` refuses it."""

    name: ClassVar[str] = "function"
    function: Callable[[Group, Context], Tensor]

    def score(self, group: Group, context: Context) -> Tensor:
        """Return what the function gives, detached and as float32."""
        result: Tensor = self.function(group, context)
        return result.detach().float() if isinstance(result, Tensor) and not result.is_complex() else result


def make_criterion(spec: str | Criterion | Callable[[Group, Context], Tensor]) -> Criterion:
    """Return the criterion that `spec` means: a registered name, a criterion, or a function of (group, context).

    Raises:
        RegistryError: no criterion has that name; the text lists those that exist.
        ConfigError: `spec` is something else.

    >>> make_criterion("l2")
    L2(roles=('producer', 'reader', 'bias', 'scale', 'shift', 'other'), normalize='mean')
    >>> make_criterion("l3")
    Traceback (most recent call last):
    secateur.errors.RegistryError: No criterion 'l3'. Known: bn_scale, ..., taylor...
    """
    if isinstance(spec, str):
        return CRITERIA[spec]()
    if isinstance(spec, Criterion):
        return spec
    if isinstance(spec, type):
        raise ConfigError(f"{spec.__name__} is a class. Pass an instance, {spec.__name__}(), or a registered name.")
    if callable(spec):
        return FunctionCriterion(function=spec)
    raise ConfigError(
        f"{spec!r} is no criterion. Pass a name from CRITERIA, a Criterion, or a function of (group, context)."
    )


def needs_of(criterion: Criterion) -> frozenset[str]:
    """Return what the criterion needs, together with the needs of criteria that it holds as fields.

    >>> sorted(needs_of(make_criterion("taylor")))
    ['gradients']
    """
    held = (getattr(criterion, field.name) for field in fields(criterion))
    return criterion.needs.union(*(needs_of(value) for value in held if isinstance(value, Criterion)))


def score_groups(groups: Iterable[Group], criterion: Criterion, context: Context) -> dict[str, Tensor]:
    """Score every group that may shrink; frozen groups have nothing to choose and are left out.

    Returns:
        by group name, (size,) float32 without grad, finite; larger = keep.
    Raises:
        ConfigError: the criterion needs gradients and the context has none.
        GroupError: a result has the wrong type, shape or dtype, or holds NaN or Inf; weights at fault are named.
    """
    if "gradients" in needs_of(criterion) and context.gradients is None:
        raise ConfigError(
            f"Criterion '{criterion.name}' needs gradients and the context has none. "
            "Pass Context(tensors, gradients=collect_gradients(model, batches))."
        )
    scores: dict[str, Tensor] = {}
    for group in groups:
        if group.frozen_reason is not None:
            continue
        if group.name in scores:
            raise GroupError(f"Two groups are called '{group.name}'. Scores are filed by name; give each its own.")
        with torch.no_grad():
            result = criterion.score(group, context)
        _check(result, group, criterion, context)
        scores[group.name] = result
    return scores


def _rows(group: Group, member: Member, source: Mapping[str, Tensor], what: str) -> Tensor:
    """Return `member`'s part of `source` as (size, k), detached."""
    if member.key not in source:
        raise GroupError(f"Group '{group.name}' has a member '{member.key}' and the context has no {what} for it.")
    tensor = source[member.key].detach()
    if tensor.is_meta:
        raise GroupError(f"'{member.key}' is on the meta device and has no values to score. Load the weights first.")
    view = member.view(tensor)
    if len(view) != group.size:
        raise GroupError(
            f"'{member.key}' has {len(view)} units on axis {member.axis}; group '{group.name}' has {group.size}."
        )
    return view.reshape(group.size, -1)


def _check(result: object, group: Group, criterion: Criterion, context: Context) -> None:
    where = f"Criterion '{criterion.name}' on group '{group.name}'"
    if not isinstance(result, Tensor):
        raise GroupError(f"{where} gave {type(result).__name__}. Return a tensor of shape ({group.size},).")
    if result.shape != (group.size,):
        raise GroupError(f"{where} gave shape {tuple(result.shape)}. Return one score per unit: ({group.size},).")
    if result.dtype != torch.float32 or result.requires_grad:
        grad = " with grad" if result.requires_grad else ""
        raise GroupError(f"{where} gave {result.dtype}{grad}. Return float32 without grad: scores.detach().float().")
    if torch.isfinite(result).all():
        return
    if faulty := _non_finite_keys(group, context):
        raise GroupError(f"{where}: NaN or Inf in {', '.join(faulty)}. Repair these weights before pruning.")
    raise GroupError(
        f"{where} gave NaN or Inf though the weights are finite. Check for overflow or a division by zero."
    )


def _non_finite_keys(group: Group, context: Context) -> list[str]:
    sources = {"": context.tensors, "the gradient of ": context.gradients or {}}
    keys = dict.fromkeys(member.key for member in group.members)
    return [
        f"{prefix}'{key}'"
        for prefix, source in sources.items()
        for key in keys
        if key in source and not source[key].is_meta and not torch.isfinite(source[key]).all()
    ]
