"""A random network with a random plan, pruned: what most laws are about."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur
from secateur import Budget, Global, Graph, Plan, PruneConfig, Uniform, VerifyReport
from secateur.errors import PlanError
from secateur.tensors import as_call, tensors_in

from .networks import Network, Program, build, programs


@dataclass(frozen=True)
class Case:
    """A program and what to prune of it. Random scores, so that any set of indices may be kept."""

    program: Program = Program()
    budget: tuple[str, float] = ("width", 0.5)
    method: str = "uniform"
    floor: float = 0.1
    criterion: str = "random"
    seed: int = 0

    @property
    def config(self) -> PruneConfig:
        method = {"uniform": Uniform, "global": Global}[self.method](floor=self.floor)
        return PruneConfig(criterion=self.criterion, method=method, seed=self.seed)

    def plan(self, model: nn.Module, inputs: Any) -> Plan | None:
        """The plan, or None where this network has nothing that can shrink."""
        name, fraction = self.budget
        try:
            return secateur.plan(model, inputs, Budget(**{name: fraction}), self.config)
        except PlanError as error:
            if not str(error).startswith("Nothing in this model can be pruned"):
                raise
            return None


@dataclass(frozen=True)
class Pruned:
    """The dense network, its plan and the smaller network. Treat all of it as read-only."""

    model: Network
    inputs: Any
    graph: Graph
    plan: Plan
    small: nn.Module
    before: Pristine

    @functools.cached_property
    def report(self) -> VerifyReport:
        return secateur.verify(self.model, self.small, self.plan, self.inputs)


@functools.lru_cache(maxsize=64)
def prune(case: Case) -> Pruned | None:
    model, inputs = build(case.program)
    before = Pristine.of(model)
    graph = secateur.trace(model, inputs)
    plan = case.plan(model, inputs)
    if plan is None:
        return None
    return Pruned(model, inputs, graph, plan, secateur.apply(model, plan, inputs=inputs, verify=False), before)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(["width", "macs", "params"]))
    return Case(
        program=draw(programs()),
        budget=(name, draw(st.sampled_from([0.5, 0.3, 0.7, 0.15, 0.9]))),
        method=draw(st.sampled_from(["uniform", "global"])),
        floor=draw(st.sampled_from([0.1, 0.0, 0.4])),
        criterion=draw(st.sampled_from(["random", "l2", "l1"])),
        seed=draw(st.integers(0, 3)),
    )


@dataclass(frozen=True)
class Pristine:
    """Everything of a model that must not change while it is read."""

    tensors: dict[str, Tensor]
    identities: dict[str, int]
    training: dict[str, bool]
    numbers: dict[str, str]
    hooks: int
    random: Tensor

    @classmethod
    def of(cls, model: nn.Module) -> Pristine:
        found = dict(_tensors(model))
        return cls(
            tensors={key: t.detach().clone() for key, t in found.items()},
            identities={key: id(t) for key, t in found.items()},
            training={name: m.training for name, m in model.named_modules()},
            numbers={name: repr(sorted(_numbers(m).items())) for name, m in model.named_modules()},
            hooks=sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
            random=torch.get_rng_state(),
        )

    def check(self, model: nn.Module, *, random: bool = True) -> None:
        now = Pristine.of(model)
        assert now.identities == self.identities
        assert all(torch.equal(now.tensors[key], t) for key, t in self.tensors.items())
        assert (now.training, now.numbers, now.hooks) == (self.training, self.numbers, self.hooks)
        if random:
            assert torch.equal(now.random, self.random)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.state_dict(keep_vars=True).items()
    for name, module in model.named_modules():
        yield from ((f"{name}.{k}", v) for k, v in vars(module).items() if isinstance(v, Tensor))


def _numbers(module: nn.Module) -> dict[str, Any]:
    return {k: v for k, v in vars(module).items() if isinstance(v, int | float | str | tuple | list)}


def run(model: nn.Module, inputs: Any) -> list[Tensor]:
    args, kwargs = as_call(inputs)
    return tensors_in(model(*args, **kwargs))


def zeroed(model: Network, plan: Plan) -> Network:
    """The original with the dropped slices of every parameter set to zero: plain PyTorch from here on.

    A dropped unit then reaches the outputs through no weight that reads it, and what produces it (weight, bias, scale
    and shift) is zero as well, so that products with other activations vanish. Buffers stay as they are.
    """
    out = copy.deepcopy(model)
    with torch.no_grad():
        for key, p in out.named_parameters(remove_duplicate=False):
            for axis, keep in enumerate(plan.keep(key) if key in plan.tensors else ()):
                if keep is not None:
                    stays = torch.zeros(p.shape[axis], dtype=p.dtype)
                    stays[keep] = 1
                    p.mul_(stays.view([-1 if i == axis else 1 for i in range(p.dim())]))
    return out


def largest_difference(expected: list[Tensor], actual: list[Tensor]) -> float:
    assert [t.shape for t in expected] == [t.shape for t in actual]
    pairs = zip(expected, actual, strict=True)
    return max(((a - b).abs().max() / a.abs().max().clamp_min(1e-30)).item() for a, b in pairs)
