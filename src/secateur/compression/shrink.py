"""From a budget to a smaller model: plan, apply, prove and compensate, at once or in steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.allocate import Budget
from secateur.allocate.budget import MEASURES
from secateur.compensation import compensate_
from secateur.compression.clock import Clock
from secateur.compression.config import CompressConfig
from secateur.compression.material import Material
from secateur.criteria import cross_entropy
from secateur.criteria.samples import inputs_of
from secateur.data.batches import calibration_batches
from secateur.dims.cost import Cost
from secateur.errors import ConfigError, VerifyError
from secateur.measure.modes import cpu_threads, device_of
from secateur.planning import Loss, plan
from secateur.plans import Plan, compose
from secateur.surgery import apply
from secateur.verification import VerifyReport, verify

_N_VERIFY = 4  # samples in the numeric proof

Tune = Callable[[nn.Module, bool], None]
"""Fine-tunes a model in place, given whether to draw a bar."""


@dataclass(frozen=True)
class Shrunk:
    """The smaller model, the plan from the dense one to it, the proof of the last step, and what else was done."""

    model: nn.Module
    plan: Plan
    proof: VerifyReport
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shrinker:
    """Makes a dense model smaller. It is not changed."""

    model: nn.Module
    material: Material
    config: CompressConfig
    loss: Loss | None = None
    tune: Tune | None = None

    def __call__(self, budget: Budget, clock: Clock) -> Shrunk:
        """Shrink to a budget in `config.n_steps` steps, each planned on what the one before left.

        Raises:
            ConfigError: several steps towards a budget that is no fraction.
            VerifyError: a step does not compute what its plan says.
        """
        small, whole, notes = self.model, None, []
        for i in range(self.config.n_steps):
            part = _part(budget, (i + 1) / self.config.n_steps, whole)
            with clock.phase("plan"):
                made = self._plan(small, part)
            with clock.phase("apply and verify"):
                before, small = small, apply(small, made, verify=False).eval()
                proof = verify(before, small, made, placed(self.material.inputs(_N_VERIFY), self.model))
            if not proof.is_ok:
                raise VerifyError(f"The pruned model fails its proof. The original is unchanged.\n{proof}")
            whole = made if whole is None else compose(whole, made)
            if self.config.compensate is not None:
                with clock.phase("compensate"):
                    inputs = [inputs_of(batch) for batch in self._calibration()]
                    notes = [str(compensate_(self.model, small, whole, inputs, self.config.compensate))]
            if self.tune is not None and i + 1 < self.config.n_steps:
                with clock.phase("fine-tune between steps"):
                    self.tune(small, False)
        assert whole is not None
        return Shrunk(small, whole, proof, tuple(notes))

    def _plan(self, model: nn.Module, budget: Budget) -> Plan:
        example = placed(self.material.inputs(1), model)
        threads = self.config.measure.n_threads if budget.is_timed else None  # time is predicted where it is measured
        loss = self.loss or cross_entropy
        with cpu_threads(threads):
            return plan(model, example, budget, self.config.prune, data=self._calibration(), loss=loss)

    def _calibration(self) -> Any:
        samples, n_samples = self.material.train or self.material.samples, self.config.calibration.n_samples
        return calibration_batches(samples, n_samples, seed=self.config.prune.seed, device=device_of(self.model))


def placed(inputs: Any, model: nn.Module) -> Any:
    """Inputs on the device of a model."""
    device = device_of(model)
    return pytree.tree_map_only(Tensor, lambda t: t.to(device), inputs)


def _part(budget: Budget, done: float, made: Plan | None) -> Budget:
    """What may be kept of the present model so that the dense one keeps fraction ** done."""
    if done == 1 and made is None:
        return budget
    asked = budget.asked()
    if absolute := [name for name in asked if name not in MEASURES]:
        raise ConfigError(f"{absolute[0]} is no fraction of the dense model. Steps take fractions; or set n_steps=1.")
    return Budget(**{name: min(1.0, value**done / _kept(name, value, done, made)) for name, value in asked.items()})


def _kept(name: str, value: float, done: float, made: Plan | None) -> float:
    """The fraction that the present model keeps of the dense one; widths are taken as asked."""
    if made is None:
        return 1.0
    before, after = (_amount(cost, name) for cost in (made.cost_before, made.cost_after))
    return after / before if before and after else value**done


def _amount(cost: Cost, name: str) -> float:
    return float(getattr(cost, MEASURES[name], 0) or 0)
