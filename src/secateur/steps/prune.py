"""Narrower widths under a budget: plan, apply, prove and compensate, at once or in several rounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from torch import nn

from secateur.allocate import Budget
from secateur.allocate.budget import MEASURES
from secateur.compensation import compensate_
from secateur.compensation.config import CompensateConfig
from secateur.criteria import make_criterion, needs_of
from secateur.criteria.base import OF_LOSS
from secateur.criteria.samples import inputs_of
from secateur.dims.cost import Cost
from secateur.edits import Prune as PruneEdit
from secateur.errors import ConfigError, VerifyError
from secateur.measure.modes import cpu_threads
from secateur.planning import PruneConfig, plan
from secateur.plans import Plan, compose
from secateur.steps.base import STEPS, Context, Done
from secateur.steps.finetune import tune_
from secateur.surgery import apply
from secateur.train.config import TrainConfig
from secateur.verification import VerifyReport, verify

_N_VERIFY = 4  # samples in the numeric proof


@dataclass(frozen=True)
class Shrunk:
    """The smaller model, the plan that leads to it, the proof of the last round, and what else was done."""

    model: nn.Module
    plan: Plan
    proof: VerifyReport
    notes: tuple[str, ...] = ()


@STEPS.register("prune")
@dataclass(frozen=True, kw_only=True)
class Prune:
    """Remove channels, heads and features. Masks and scales of coded weights are cut along."""

    name: ClassVar[str] = "prune"
    accepts: ClassVar[frozenset[str]] = frozenset({"masked", "factored", "quantized", "input-quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset()

    budget: Budget = field(default_factory=lambda: Budget(macs=0.5))  # what may be kept of the model at this step
    prune: PruneConfig = field(default_factory=PruneConfig)  # how to choose what goes
    n_rounds: int = 1  # how many times to prune, each time by the same factor
    compensate: CompensateConfig | None = None  # solve for the weights that are left, without labels
    between: TrainConfig | None = None  # fine-tune between rounds, on labelled data

    def __post_init__(self) -> None:
        if self.n_rounds < 1:
            raise ConfigError(f"n_rounds={self.n_rounds} must be at least 1.")
        if self.budget.drop_points is not None:
            raise ConfigError("A step can't search a budget on a metric. Give drop_points to `compress` without steps.")

    @property
    def needs_labels(self) -> bool:
        """True for scores by gradients of the loss, and for fine-tuning between rounds."""
        return self.between is not None or not needs_of(make_criterion(self.prune.criterion)).isdisjoint(OF_LOSS)

    def run(self, model: nn.Module, context: Context) -> Done:
        """Shrink to the step's budget."""
        done = self.shrink(model, context, self.budget)
        facts = {"verify": str(done.proof), "max_difference": done.proof.max_difference}
        return Done(done.model, PruneEdit(done.plan), done.plan.skipped, (*done.plan.notes, *done.notes), facts)

    def shrink(self, model: nn.Module, context: Context, budget: Budget, n_threads: int | None = None) -> Shrunk:
        """Shrink to another budget, in rounds, each planned on what the one before left.

        Args:
            n_threads: CPU threads that predicted latencies are for.
        Raises:
            ConfigError: several rounds towards a budget that is no fraction.
            VerifyError: a round does not compute what its plan says.
        """
        small, whole, clock = model, None, context.clock
        notes: tuple[str, ...] = ()
        for i in range(self.n_rounds):
            part = _part(budget, (i + 1) / self.n_rounds, whole)
            with clock.phase("plan"), cpu_threads(n_threads if budget.is_timed else None):
                data = context.calibration()
                made = plan(small, context.example, part, self.prune, data=data, loss=context.label_loss)
            small, proof = cut(small, made, context)
            whole = made if whole is None else compose(whole, made)
            if self.compensate is not None:
                notes = (solve_again_(model, small, whole, context, self.compensate),)
            if self.between is not None and context.train is not None and i + 1 < self.n_rounds:
                with clock.phase("fine-tune between rounds"):
                    tune_(small, replace(context, progress=False, checkpoint=None), self.between)
        assert whole is not None
        return Shrunk(small, whole, proof, notes)


def cut(model: nn.Module, made: Plan, context: Context) -> tuple[nn.Module, VerifyReport]:
    """A copy of the model with a plan carried out, and the proof that it computes what the plan says.

    Raises:
        VerifyError: it does not.
    """
    with context.clock.phase("apply and verify"):
        small = apply(model, made, verify=False).eval()
        proof = verify(model, small, made, context.inputs(_N_VERIFY))
    if not proof.is_ok:
        raise VerifyError(f"The pruned model fails its proof. The original is unchanged.\n{proof}")
    return small, proof


def solve_again_(model: nn.Module, small: nn.Module, made: Plan, context: Context, config: CompensateConfig) -> str:
    """Solve for the weights that a plan left, as `compensate_` does; what it says of them."""
    with context.clock.phase("compensate"):
        return str(compensate_(model, small, made, [inputs_of(batch) for batch in context.calibration()], config))


def _part(budget: Budget, done: float, made: Plan | None) -> Budget:
    """What may be kept of the present model so that the first one keeps fraction ** done."""
    if done == 1 and made is None:
        return budget
    asked = budget.asked()
    if absolute := [name for name in asked if name not in MEASURES]:
        raise ConfigError(f"{absolute[0]} is no fraction of the dense model. Rounds take fractions; or set n_rounds=1.")
    return Budget(**{name: min(1.0, value**done / _kept(name, value, done, made)) for name, value in asked.items()})


def _kept(name: str, value: float, done: float, made: Plan | None) -> float:
    """The fraction that the present model keeps of the first one; widths are taken as asked."""
    if made is None:
        return 1.0
    before, after = (_amount(cost, name) for cost in (made.cost_before, made.cost_after))
    return after / before if before and after else value**done


def _amount(cost: Cost, name: str) -> float:
    return float(getattr(cost, MEASURES[name], 0) or 0)
