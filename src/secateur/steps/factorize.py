"""The step that factors layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

from torch import Tensor, nn

from secateur.allocate import Budget, make_method
from secateur.dims.cost import Cost
from secateur.errors import ConfigError, PlanError
from secateur.forward import plain_forward
from secateur.graph import trace
from secateur.lowrank.edit import Factors
from secateur.lowrank.forms import FORMS, Rank
from secateur.lowrank.layers import Factored, kernel_of
from secateur.lowrank.ranks import Candidate, by_budget, by_energy, candidate
from secateur.lowrank.sites import Site, collect_grams, find_sites
from secateur.steps.base import STEPS, Context, Done
from secateur.surgery import copy_model, replace_modules_
from secateur.tensors import Inputs, on_device


@STEPS.register("factorize")
@dataclass(frozen=True, kw_only=True)
class Factorize:
    """Linear layers and convolutions as chains of thinner ones, where that saves.

    Say by what ranks are chosen: the energy that each layer keeps, or what the whole model may keep.

    Args:
        energy: fraction of each layer's squared output (of its squared weights, where not `is_aware`) that stays.
        params, macs: fraction of the whole model's that may stay; ranks are then chosen over all layers.
        form: of convolutions with a window: "svd", "spatial", "tucker" or "cp". Matrices take "svd".
        is_aware: weigh errors by what the layer reads on the calibration data, as far as the form can ("svd").
        method: how a budget is spread over layers, by its name in `secateur.allocate`.
        only, ignore: fnmatch patterns on fqn: what may be factored, and what of that may not.
    Raises:
        ConfigError: neither energy nor a budget is given, or both; a number outside (0, 1]; an unknown method.
        RegistryError: an unknown form.

    >>> Factorize(params=0.5).form
    'svd'
    """

    name: ClassVar[str] = "factorize"
    accepts: ClassVar[frozenset[str]] = frozenset({"factored"})
    leaves: ClassVar[frozenset[str]] = frozenset({"factored"})
    needs_labels: ClassVar[bool] = False

    energy: float | None = None
    params: float | None = None
    macs: float | None = None
    form: str = "svd"
    is_aware: bool = True
    method: str = "lagrangian"
    only: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        has_budget = self.params is not None or self.macs is not None
        if has_budget == (self.energy is not None):
            raise ConfigError(
                "Say either energy=0.95 (kept in each layer), or params=0.5 or macs=0.5 of the whole model."
            )
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ConfigError(f"energy={self.energy} is outside (0, 1]. It is the fraction that each layer keeps.")
        FORMS[self.form]  # an unknown name is an error
        make_method(self.method)

    def run(self, model: nn.Module, context: Context) -> Done:
        """Choose ranks, and put chains in place of layers in a copy."""
        made = copy_model(model).eval()
        sites, skipped = find_sites(made, context.example)
        sites, left = self._chosen(sites)
        grams = collect_grams(made, sites, context.calibration()) if self.is_aware else {}
        found, useless = self._candidates(sites, grams)
        whole = self._whole(made, context.example)
        ranks, notes = self._ranks(found, whole)
        kept = [(fqn, "worth more whole") for fqn, rank in ranks.items() if rank is None]
        chains = {c.site.fqn: _chain(c, rank) for c in found if (rank := ranks[c.site.fqn]) is not None}
        refused = _refused(made, chains, context.example)
        chains = {fqn: chain for fqn, chain in chains.items() if fqn not in refused}
        replace_modules_(made, chains)
        forms = {c.site.fqn: (c.form, rank) for c in found if (rank := ranks[c.site.fqn]) and c.site.fqn in chains}
        facts = {"layers": {c.site.fqn: _facts(c, ranks[c.site.fqn]) for c in found if c.site.fqn in chains}}
        edit = Factors(forms) if forms else None
        return Done(made, edit, (*skipped, *left, *useless, *kept, *refused.items()), notes, facts)

    def _chosen(self, sites: list[Site]) -> tuple[list[Site], list[tuple[str, str]]]:
        def left(fqn: str) -> str:
            pattern = next((p for p in self.ignore if fnmatch(fqn, p)), None)
            if pattern is not None:
                return f"ignore pattern {pattern!r} matches"
            return "" if any(fnmatch(fqn, p) for p in self.only) else "no pattern of `only` matches"

        return [s for s in sites if not left(s.fqn)], [(s.fqn, reason) for s in sites if (reason := left(s.fqn))]

    def _candidates(
        self, sites: list[Site], grams: Mapping[str, Tensor]
    ) -> tuple[list[Candidate], list[tuple[str, str]]]:
        found: list[Candidate] = []
        useless: list[tuple[str, str]] = []
        for site in sites:
            has_window = kernel_of(site.layer)[0, 0, 0].numel() > 1
            made = candidate(site, self.form if has_window else "svd", grams.get(site.fqn))
            if isinstance(made, Candidate):
                found.append(made)
            else:
                useless.append((site.fqn, made))
        return found, useless

    def _whole(self, model: nn.Module, example: Inputs) -> Cost:
        params = sum(p.numel() for p in model.parameters())
        return Cost(params, trace(model, example).cost().macs if self.macs is not None else 1)

    def _ranks(self, found: list[Candidate], whole: Cost) -> tuple[dict[str, Rank | None], tuple[str, ...]]:
        if not found:
            return {}, ("no layer can be factored with a gain",)
        if self.energy is not None:
            return by_energy(found, self.energy), ()
        ranks, allocation = by_budget(found, whole, Budget(params=self.params, macs=self.macs), self.method)
        return ranks, allocation.notes


def _chain(found: Candidate, rank: Rank) -> Factored:
    chain = Factored.blank(found.site.layer, found.form, rank)
    chain.fill_(found.parts.factors(rank))
    return chain


def _facts(found: Candidate, rank: Rank | None) -> dict[str, Any]:
    error = next(error for level, error in found.levels if level == rank)
    (before, _), (after, _) = found.cost(None), found.cost(rank)
    return {"form": found.form, "rank": list(rank or ()), "error": error, "params": [before, after]}


def _refused(model: nn.Module, chains: Mapping[str, Factored], example: Inputs) -> dict[str, str]:
    """Layers that some code needs as they are: it reads `weight` or `in_features` of them, say. Tried one by one."""

    def fault(some: Mapping[str, nn.Module]) -> str:
        before = {fqn: model.get_submodule(fqn) for fqn in some}
        replace_modules_(model, some)
        try:
            with plain_forward(model):
                args, kwargs = on_device(model, example)
                model(*args, **kwargs)
        except (AttributeError, TypeError) as error:
            return f"the model can't run with it factored: {error}"
        finally:
            replace_modules_(model, before)
        return ""

    if not fault(chains):
        return {}
    refused = {fqn: reason for fqn, chain in chains.items() if (reason := fault({fqn: chain}))}
    if reason := fault({fqn: chain for fqn, chain in chains.items() if fqn not in refused}):
        raise PlanError(f"The model can't run with factored layers: {reason} Leave some out with ignore=(…).")
    return refused
