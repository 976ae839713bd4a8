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
from secateur.frameworks.huggingface_layers import LayerFields, find_layer_fields
from secateur.frameworks.huggingface_model import MARK
from secateur.frameworks.huggingface_rebuild import mismatch
from secateur.graph import Graph, trace
from secateur.planning import PruneConfig, choose_groups, plan_graph
from secateur.plans import Plan
from secateur.repair import Repairer, repair
from secateur.surgery import apply
from secateur.tensors import Inputs

PLAN = "plan.json"


@dataclass(frozen=True)
class Planned:
    """A plan, the `config.json` for it, and why `from_pretrained` can't build its model; empty where it can."""

    plan: Plan
    data: dict[str, Any]
    unloadable: str = ""


@dataclass(frozen=True)
class Prepared:
    """An architecture, traced and repaired; `fit` or `layers` says which numbers of its config count what.

    `layers` is None where all layers are to be alike.
    """

    repairer: Repairer
    fit: Fit
    layers: LayerFields | None

    @property
    def graph(self) -> Graph:
        """The traced network."""
        return self.repairer.graph

    def choose(self, config: PruneConfig) -> list[Group]:
        """The groups to score. Raises PlanError, with reasons, where there are none."""
        return choose_groups(self.graph, config.ignore)[0]

    def plan(self, scores: Mapping[str, Tensor], budget: Budget, config: PruneConfig, *, n_trials: int = 4) -> Planned:
        """The plan, and the `config.json` of the smaller model. Where no mark is in it, the model was rebuilt from it.

        Args:
            scores: by group, as `stream_scores` gives them.
            n_trials: how often counts that the config can't say are a reason to look again.
        Raises:
            PlanError: layers are to be alike, and the model rebuilt from the config is not the planned one; the first
                difference is named.
        """
        plan = plan_graph(self.repairer, scores, budget, config)
        plan = replace(plan, config={**plan.config, "layers": "alike" if self.layers is None else "each its own"})
        counts = {g.name: len(g.keep) for g in plan.groups}
        small = apply(self.repairer.model, plan, verify=False)
        if self.layers is not None:
            return self._each_its_own(self.layers, plan, counts, small)
        by_leaf = self.graph.leaf_counts(counts)
        wrong = self.fit.difference(by_leaf, small)
        if wrong is None:
            return Planned(plan, self.fit.config_data(by_leaf))
        if n_trials <= 1:
            raise PlanError(
                f"{type(small).__name__} rebuilt from the new config.json is not the planned model: {wrong}."
                " Choose other widths, or per_layer=True, which needs no config."
            )
        self.fit.refine(by_leaf)
        return self.plan(scores, budget, config, n_trials=n_trials - 1)

    def _each_its_own(self, layers: LayerFields, plan: Plan, counts: Mapping[str, int], small: nn.Module) -> Planned:
        """The fields of each layer, and the dense config beside them where no model can be built from them.

        They are left out where `from_pretrained` would put the weights into a model that computes something else.
        """
        data = layers.config_data(counts)
        wrong = mismatch(self.fit.cls, data, small, self.fit.inputs)
        if wrong is None:
            return Planned(plan, data)
        known = data if wrong.is_refused else layers.data
        return Planned(plan, {**known, MARK: {"plan": PLAN, "config": layers.data}}, wrong.text)


def prepare(model: nn.Module, cls: type, data: dict[str, Any], inputs: Inputs, *, per_layer: bool) -> Prepared:
    """Trace and repair a model on the meta device, and find which numbers of its config count its widths.

    Args:
        model: as `build` gives it, of class `cls` and config `data`.
        per_layer: let each layer choose, whether a number of the config can follow or not.
    """
    repairer = repair(model, inputs, trace(model, inputs))
    fit = Fit(data, cls, model, repairer.graph, tuple(repairer.bindings), inputs)
    if per_layer:
        return Prepared(repairer, fit, find_layer_fields(fit))
    fit.run()
    return Prepared(repairer, fit, None)
