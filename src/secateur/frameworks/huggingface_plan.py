"""Planning for a model of Transformers whose weights are elsewhere: the graph, what may be chosen, and the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from secateur.allocate import Budget
from secateur.dims.groups import Group
from secateur.errors import PlanError
from secateur.frameworks.huggingface_config import Fit
from secateur.graph import Graph, trace
from secateur.planning import PruneConfig, choose_groups, plan_graph
from secateur.plans import Plan
from secateur.repair import Repairer, repair
from secateur.surgery import apply
from secateur.tensors import Inputs

MARK = "secateur_plan"  # key of a config.json that describes the dense model, whose plan is beside it


@dataclass(frozen=True)
class Prepared:
    """An architecture, traced and repaired. `fit` says which numbers of its config count what; None per layer."""

    repairer: Repairer
    data: Mapping[str, Any]
    fit: Fit | None

    @property
    def graph(self) -> Graph:
        """The traced network."""
        return self.repairer.graph

    def choose(self, config: PruneConfig) -> list[Group]:
        """The groups to score. Raises PlanError, with reasons, where there are none."""
        return choose_groups(self.graph, config.ignore)[0]

    def plan(
        self, scores: Mapping[str, Tensor], budget: Budget, config: PruneConfig, *, n_trials: int = 4
    ) -> tuple[Plan, dict[str, Any]]:
        """The plan, and the `config.json` of the smaller model, which was rebuilt from it and is the planned one.

        Args:
            scores: by group, as `stream_scores` gives them.
            n_trials: how often counts that the config can't say are a reason to look again.
        Raises:
            PlanError: the model rebuilt from that config is not the planned one; the first difference is named.
        """
        plan = plan_graph(self.repairer, scores, budget, config)
        layers = "alike" if self.fit is not None else "each its own"
        plan = replace(plan, config={**plan.config, "layers": layers})
        if self.fit is None:
            return plan, {**self.data, MARK: "plan.json"}
        by_leaf = self.graph.leaf_counts({g.name: len(g.keep) for g in plan.groups})
        model = self.repairer.model
        text = self.fit.difference(by_leaf, apply(model, plan, verify=False))
        if text is None:
            return plan, self.fit.config_data(by_leaf)
        if n_trials <= 1:
            raise PlanError(
                f"{type(model).__name__} rebuilt from the new config.json is not the planned model: {text}."
                " Choose other widths, or per_layer=True, which needs no config."
            )
        self.fit.refine(by_leaf)
        return self.plan(scores, budget, config, n_trials=n_trials - 1)


def prepare(model: nn.Module, cls: type, data: dict[str, Any], inputs: Inputs, *, per_layer: bool) -> Prepared:
    """Trace and repair a model on the meta device, and find which numbers of its config count its widths.

    Args:
        model: as `build` gives it, of class `cls` and config `data`.
        per_layer: let each layer choose; then no number of the config needs to follow.
    """
    repairer = repair(model, inputs, trace(model, inputs))
    fit = None
    if not per_layer:
        fit = Fit(data, cls, model, repairer.graph, tuple(repairer.bindings), inputs)
        fit.run()
    return Prepared(repairer, data, fit)
