"""Penalties on weights that training adds to its loss, so that some of them can go afterwards."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from secateur.criteria.base import LEARNED
from secateur.criteria.samples import inputs_of
from secateur.data.batches import batches
from secateur.dims.groups import Group, Member
from secateur.errors import ConfigError
from secateur.graph import trace
from secateur.registry import Registry

Parameters = Mapping[str, nn.Parameter]
Penalty = Callable[[int], Tensor]
"""Of the step, counted from 0 over the whole run: a scalar to add to the loss."""


@dataclass(frozen=True, kw_only=True)
class Regularizer(ABC):
    """A penalty. Its fields are its hyper-parameters.

    Attributes:
        name: its key in `REGULARIZERS`.
        needs_groups: it looks at the units that must go together, for which the model is traced once.
    """

    name: ClassVar[str]
    needs_groups: ClassVar[bool] = False

    @abstractmethod
    def bind(self, parameters: Parameters, groups: Sequence[Group]) -> Penalty:
        """The penalty on these parameters (those that learn, by key) and on the units of these groups.

        Raises:
            ConfigError: there is nothing to penalise.
        """

    def to_dict(self) -> dict[str, Any]:
        """Return {"kind": the key in REGULARIZERS, and the fields}."""
        return {"kind": self.name, **asdict(self)}


REGULARIZERS: Registry[str, type[Regularizer]] = Registry("regularizer")


@REGULARIZERS.register("l1")
@dataclass(frozen=True, kw_only=True)
class L1(Regularizer):
    """strength * sum of |w|, over weights of two or more axes. Source: Tibshirani, "Regression shrinkage", 1996."""

    name: ClassVar[str] = "l1"
    strength: float = 1e-5

    def __post_init__(self) -> None:
        _check_positive(strength=self.strength)

    def bind(self, parameters: Parameters, groups: Sequence[Group]) -> Penalty:
        """All weights alike."""
        weights = _weights(parameters)
        return lambda step: self.strength * torch.stack([w.abs().sum() for w in weights]).sum()


@REGULARIZERS.register("l2")
@dataclass(frozen=True, kw_only=True)
class L2(Regularizer):
    """strength / 2 * sum of w^2, over weights of two or more axes. AdamW's weight decay is not scaled as this is."""

    name: ClassVar[str] = "l2"
    strength: float = 1e-4

    def __post_init__(self) -> None:
        _check_positive(strength=self.strength)

    def bind(self, parameters: Parameters, groups: Sequence[Group]) -> Penalty:
        """All weights alike."""
        weights = _weights(parameters)
        return lambda step: self.strength / 2 * torch.stack([w.square().sum() for w in weights]).sum()


@REGULARIZERS.register("group_lasso")
@dataclass(frozen=True, kw_only=True)
class GroupLasso(Regularizer):
    """strength * sum over groups and their units u of sqrt(p) |w_u|, w_u the p weights that go when the unit goes.

    Source: Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006; Wen et al.,
    "Learning structured sparsity in deep neural networks", NIPS 2016, section 3.
    Differs: a unit has all that goes with it, in every parameter, rather than one filter. So units of different groups
    overlap, where a weight reads one and produces the other.
    """

    name: ClassVar[str] = "group_lasso"
    needs_groups: ClassVar[bool] = True
    strength: float = 1e-5

    def __post_init__(self) -> None:
        _check_positive(strength=self.strength)

    def bind(self, parameters: Parameters, groups: Sequence[Group]) -> Penalty:
        """One norm per unit."""
        units = _units(parameters, groups)

        def of_group(rows: list[Tensor]) -> Tensor:
            return math.sqrt(sum(r.shape[1] for r in rows)) * _norms(rows).sum()

        return lambda step: self.strength * torch.stack([of_group(part.rows()) for part in units]).sum()


@REGULARIZERS.register("growing")
@dataclass(frozen=True, kw_only=True)
class Growing(Regularizer):
    """lambda / 2 * sum of w_u^2 over the units u with the least L1 norms at the start; lambda grows step by step.

    lambda = min(ceiling, delta * (1 + step // every)). So the units that are to be pruned fade out, and training makes
    up for them meanwhile.
    Source: Wang et al., "Neural pruning via growing regularization", ICLR 2021, section 3.1 (GReg-1).
    Differs: a unit has all that goes with it rather than one filter, and lambda stays at its ceiling to the end.
    """

    name: ClassVar[str] = "growing"
    needs_groups: ClassVar[bool] = True
    sparsity: float = 0.5  # fraction of the units of each group
    delta: float = 1e-4
    every: int = 10  # steps
    ceiling: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(delta=self.delta, every=self.every, ceiling=self.ceiling)
        if not 0 < self.sparsity < 1:
            raise ConfigError(f"sparsity={self.sparsity} is outside (0, 1). It is the fraction of units that fade out.")

    def bind(self, parameters: Parameters, groups: Sequence[Group]) -> Penalty:
        """The units are chosen here."""
        units = _units(parameters, groups)
        chosen = []
        for part in units:
            sums = torch.stack([r.detach().abs().sum(1) for r in part.rows()]).sum(0)
            chosen.append(sums.argsort(stable=True)[: round(self.sparsity * part.size)])

        def penalty(step: int) -> Tensor:
            weight = min(self.ceiling, self.delta * (1 + step // self.every))
            parts = [r[fading] for part, fading in zip(units, chosen, strict=True) for r in part.rows()]
            return weight / 2 * torch.stack([r.square().sum() for r in parts]).sum()

        return penalty


@REGULARIZERS.register("polarization")
@dataclass(frozen=True, kw_only=True)
class Polarization(Regularizer):
    """strength * (t * sum_i |g_i| - sum_i ||g_i| - mean of |g||), over the scales g of all norms.

    It drives scales to zero or to one common value away from it, so that a threshold between is easy to find.
    Source: Zhuang et al., "Neuron-level structured pruning using polarization regularizer", NeurIPS 2020, section 3.
    Differs: magnitudes of scales, which may have any sign, rather than scales that are held in [0, a].
    """

    name: ClassVar[str] = "polarization"
    needs_groups: ClassVar[bool] = True
    strength: float = 1e-4
    t: float = 1.2  # above 1, scales cannot run away

    def __post_init__(self) -> None:
        _check_positive(strength=self.strength, t=self.t)

    def bind(self, parameters: Parameters, groups: Sequence[Group]) -> Penalty:
        """One mean over all norms."""
        keys = dict.fromkeys(m.key for g in groups for m in g.members if m.role == "scale")
        scales = [parameters[key] for key in keys if key in parameters]
        if not scales:
            raise ConfigError("No norm with scales that learn feeds a prunable group, so nothing can be polarized.")

        def penalty(step: int) -> Tensor:
            sizes = torch.cat([scale.flatten() for scale in scales]).abs()
            return self.strength * (self.t * sizes.sum() - (sizes - sizes.mean()).abs().sum())

        return penalty


def bind_all(regularizers: Sequence[Regularizer], model: nn.Module, data: Dataset[Any]) -> tuple[Penalty, ...]:
    """The penalties on a model, which is traced on the first samples of the data where one of them needs groups."""
    parameters = {key: p for key, p in model.named_parameters() if p.requires_grad}
    groups: list[Group] = []
    if any(r.needs_groups for r in regularizers):
        groups = trace(model, inputs_of(next(batches(data, batch_size=2)))).prunable
    return tuple(r.bind(parameters, groups) for r in regularizers)


def _weights(parameters: Parameters) -> list[nn.Parameter]:
    found = [p for p in parameters.values() if p.ndim > 1]
    if not found:
        raise ConfigError("No weight of two or more axes learns, so there is nothing to regularize.")
    return found


@dataclass(frozen=True)
class _Units:
    """The units of a group, with the places of their weights."""

    size: int
    places: tuple[tuple[Member, nn.Parameter], ...]

    def rows(self) -> list[Tensor]:
        """The weights of the units now: (size, k) of each place."""
        return [member.view(parameter).reshape(self.size, -1) for member, parameter in self.places]


def _units(parameters: Parameters, groups: Sequence[Group]) -> list[_Units]:
    found = []
    for group in groups:
        places = [(m, parameters[m.key]) for m in group.members if m.role in LEARNED and m.key in parameters]
        if places:
            found.append(_Units(group.size, tuple(places)))
    if not found:
        raise ConfigError("The model has no prunable groups whose weights learn, so there is nothing to regularize.")
    return found


def _norms(rows: Sequence[Tensor]) -> Tensor:
    """(size,) Euclidean norms over all rows; its gradient at zero is zero."""
    each = torch.stack([torch.linalg.vector_norm(r, dim=1) for r in rows])
    norms: Tensor = torch.linalg.vector_norm(each, dim=0)
    return norms


def _check_positive(**values: float) -> None:
    if wrong := [f"{name}={value}" for name, value in values.items() if not 0 < value < math.inf]:
        raise ConfigError(f"Out of range: {', '.join(wrong)}. These are positive numbers.")
