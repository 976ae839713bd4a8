"""What a criterion is, what it sees, and how every result is checked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from secateur.calls import make
from secateur.errors import ConfigError, GroupError
from secateur.registry import Registry
from secateur.tensors import Inputs, named_tensors

if TYPE_CHECKING:
    from secateur.allocate.curves import ErrorCurve
    from secateur.criteria.activations import Activity
    from secateur.dims.groups import Group, Member

# Roles of members whose values training sets. "statistic" (running mean, running variance) is measured, not learned.
LEARNED: tuple[str, ...] = ("producer", "reader", "bias", "scale", "shift", "other")
ROLES: tuple[str, ...] = (*LEARNED, "statistic")
# What is measured on data, by the field of `Context` that holds it, and how it is measured.
NEEDS = {
    "gradients": "collect_gradients(model, batches)",
    "squared_gradients": "collect_squared_gradients(model, batches)",
    "gates": "collect_gates(model, groups, batches)",
    "model_gates": "collect_model_gates(model, groups, batches)",
    "activity": "collect_activity(model, groups, batches)",
    "ranks": "collect_ranks(model, groups, batches)",
    "products": "collect_products(model, groups, batches)",
    "divergences": "collect_divergences(model, groups, batches)",
}
OF_LOSS = frozenset({"gradients", "squared_gradients", "gates"})
"""Those that are measured by a loss, which takes labels."""


@dataclass(frozen=True)
class Context:
    """What a criterion may look at: the model's tensors by state-dict key, and what was measured on data.

    Args:
        tensors: every parameter and buffer that a group's members name.
        generator: the source of randomness; it is read, never advanced.
        gradients: of the loss, by parameter key, from `collect_gradients`; this and all below only for criteria that
            need it.
        squared_gradients: of each sample's loss, by parameter key, averaged, from `collect_squared_gradients`.
        gates: by group, (n_samples, size), the derivative of each sample's loss by a factor on each unit, from
            `collect_gates`; `model_gates` the same with the model's own labels, from `collect_model_gates`.
        activity: by group, statistics of what is read of each unit, from `collect_activity`.
        ranks: by group, (size,), of feature maps, from `collect_ranks`.
        products: by group, (size, size), inner products of activations, from `collect_products`.
        divergences: by group, (size,), of the outputs without each unit, from `collect_divergences`.
        constants: keys of buffers and plain tensor attributes. Nobody learned them (rotary tables, masks), so criteria
            leave them out; members of role "statistic" are given to those who ask for that role.
    """

    tensors: Mapping[str, Tensor]
    gradients: Mapping[str, Tensor] | None = None
    generator: torch.Generator | None = None
    constants: frozenset[str] = frozenset()
    squared_gradients: Mapping[str, Tensor] | None = None
    gates: Mapping[str, Tensor] | None = None
    model_gates: Mapping[str, Tensor] | None = None
    activity: Mapping[str, Activity] | None = None
    ranks: Mapping[str, Tensor] | None = None
    products: Mapping[str, Tensor] | None = None
    divergences: Mapping[str, Tensor] | None = None

    @classmethod
    def of(cls, model: nn.Module, *, generator: torch.Generator | None = None, **measured: Any) -> Self:
        """Return the context of a model: its parameters, buffers and tensor attributes, with what was measured.

        Args:
            measured: fields by name, such as `measure` returns them.

        >>> sorted(Context.of(nn.BatchNorm1d(2)).constants)
        ['num_batches_tracked', 'running_mean', 'running_var']
        """
        tensors = named_tensors(model)
        learned = {key for key, _ in model.named_parameters(remove_duplicate=False)}
        return cls(tensors, generator=generator, constants=frozenset(tensors.keys() - learned), **measured)

    def measured(self, need: str, group: Group) -> Any:
        """Return what was measured of a group.

        Raises:
            ConfigError: nothing of the kind was measured.
            GroupError: it was, but not of this group.
        """
        found = getattr(self, need)
        if found is None:
            raise ConfigError(f"Scoring group '{group.name}' takes {need} and the context has none. {_advice(need)}")
        if group.name not in found:
            raise GroupError(
                f"The context has no {need} of group '{group.name}': no operator sums over its units, or other groups "
                "were measured. Choose another criterion, or leave the group out."
            )
        return found[group.name]

    def slices(self, group: Group, roles: tuple[str, ...] | None = None) -> list[Tensor]:
        """Return the group's tensors, each as (size, k): row c holds all that unit c has in that member.

        Args:
            roles: members of other roles are left out, and so are constants; None means all members.
        Raises:
            GroupError: a key is missing, holds no data (meta device), or a view has not `group.size` rows.
        """
        return [_rows(group, member, self.tensors, "tensor") for member in self._members(group, roles)]

    def gradient_pairs(
        self, group: Group, roles: tuple[str, ...] | None = None, need: str = "gradients"
    ) -> list[tuple[Tensor, Tensor]]:
        """Return (weights, gradients) per member, both (size, k); or squared gradients, if that is the need.

        A member of role "statistic" or "other" may be a buffer, which has no gradient: it is left out then.
        Raises:
            ConfigError: the context has no gradients.
            GroupError: a weight has no gradient, or one of another shape.
        """
        found: Mapping[str, Tensor] | None = getattr(self, need)
        if found is None:
            raise ConfigError(f"Scoring group '{group.name}' takes {need} and the context has none. {_advice(need)}")
        pairs = []
        for member in self._members(group, roles):
            if member.key not in found and member.role in ("statistic", "other"):
                continue
            weights = _rows(group, member, self.tensors, "tensor")
            gradients = _rows(group, member, found, "gradient")
            if weights.shape != gradients.shape:
                raise GroupError(
                    f"'{member.key}' has shape {tuple(self.tensors[member.key].shape)} and its gradient "
                    f"{tuple(found[member.key].shape)}. Collect gradients from the model that is scored."
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

    `name` is the key in `CRITERIA`; `needs` says which fields of the context it reads, a subset of `NEEDS`.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def score(self, group: Group, context: Context) -> Tensor:
        """Return (group.size,) float32 without grad; larger = keep."""


@dataclass(frozen=True)
class Curves:
    """Error curves by group, and why groups that have none keep their width."""

    curves: dict[str, ErrorCurve]
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CurveCriterion(Criterion):
    """A rule that looks at the whole network at once and says what each group costs at every width."""

    @abstractmethod
    def curves(self, model: nn.Module, batches: Iterable[Inputs]) -> Curves:
        """Return a curve for every group that the rule can judge; `batches` are inputs without labels."""

    def score(self, group: Group, context: Context) -> Tensor:
        """Refuse: a unit has no score of its own."""
        raise ConfigError(
            f"Criterion '{self.name}' gives error curves of whole groups, not scores of units. Pass it to `plan` or"
            " `compress`, with data."
        )


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
    """Return the criterion that `spec` means: a name, with settings or without, a criterion, or a function.

    Raises:
        RegistryError: no criterion has that name; the text lists those that exist.
        ConfigError: a setting is unknown or refused, or `spec` is something else.

    >>> make_criterion("l2")
    L2(roles=('producer', 'reader', 'bias', 'scale', 'shift', 'other'), normalize='mean')
    >>> make_criterion("bn_scale?fallback=None").fallback is None
    True
    >>> make_criterion("l3")
    Traceback (most recent call last):
    secateur.errors.RegistryError: No criterion 'l3'. Known: activation_cosine, ..., wanda.
    """
    if isinstance(spec, str):
        return make(CRITERIA, spec)
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
        ConfigError: the criterion needs something measured and the context has none.
        GroupError: a result has the wrong type, shape or dtype, or holds NaN or Inf; weights at fault are named.
    """
    for need in sorted(needs_of(criterion)):
        if getattr(context, need) is None:
            raise ConfigError(f"Criterion '{criterion.name}' needs {need} and the context has none. {_advice(need)}")
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


def _advice(need: str) -> str:
    return f"Pass Context(tensors, {need}={NEEDS[need]})."


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
