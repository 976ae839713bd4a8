"""The step that makes activations sparse, and its edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar, Self

from torch import nn

from secateur.calls import make
from secateur.criteria.samples import inputs_of
from secateur.edits import EDITS
from secateur.errors import ConfigError, DataError, PlanError
from secateur.files.decode import decode
from secateur.sparse_activations import (
    ACTIVATIONS,
    Activation,
    activation_samples,
    activation_sparsity,
    find_activations,
)
from secateur.steps.base import FORMS, STEPS, Context, Done
from secateur.surgery import copy_model, replace_modules_


@EDITS.register("activate")
@dataclass(frozen=True)
class ReplaceActivations:
    """Other activations, by fqn."""

    kind: ClassVar[str] = "activate"
    modules: dict[str, Activation]

    def replay(self, model: nn.Module) -> nn.Module:
        """Put them in place on a copy."""
        made = copy_model(model)
        found = find_activations(made)
        if missing := [fqn for fqn in self.modules if fqn not in found]:
            raise PlanError(f"The model has no activation '{missing[0]}'. The edit was made for another architecture.")
        replace_modules_(made, {fqn: new.module(found[fqn]) for fqn, new in self.modules.items()})
        return made

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        return {"modules": {fqn: {"function": new.name, **asdict(new)} for fqn, new in self.modules.items()}}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        modules: dict[str, Activation] = {}
        for fqn, settings in dict(data["modules"]).items():
            rest = {name: value for name, value in settings.items() if name != "function"}
            modules[str(fqn)] = decode(ACTIVATIONS[settings["function"]], rest, f"modules[{fqn!r}]")
        return cls(modules)


@STEPS.register("activate")
@dataclass(frozen=True, kw_only=True)
class Activate:
    """Replace activation modules by ones that are zero more often, and report how often they are.

    Activations that code calls as functions (`F.relu`) are not seen. Fine-tune afterwards, most of all after `relu`.
    """

    name: ClassVar[str] = "activate"
    accepts: ClassVar[frozenset[str]] = frozenset(FORMS)
    leaves: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = False

    function: str = "relu"  # or "threshold?sparsity=0.7", or "k_winners?sparsity=0.9&axis=1"
    ignore: tuple[str, ...] = ()  # fnmatch patterns on fqn, for example "head.*"

    def __post_init__(self) -> None:
        make(ACTIVATIONS, self.function)

    def run(self, model: nn.Module, context: Context) -> Done:
        """Carry the step out on a copy of the model.

        Raises:
            ConfigError: the model has no activation modules, or all are ignored.
            DataError: a threshold is to be measured and there is no data.
        """
        function = make(ACTIVATIONS, self.function)
        found = find_activations(model)
        chosen = [fqn for fqn in found if not any(fnmatch(fqn, pattern) for pattern in self.ignore)]
        if not chosen:
            raise ConfigError(
                f"{type(model).__name__} has no activation modules to replace ({len(found)} are ignored)."
                " Those that code calls as functions can't be; make them modules."
            )
        batches = [inputs_of(batch) for batch in context.calibration()]
        if function.needs_data and not batches:
            raise DataError(f"Activation '{function.name}' is measured on data, and there is none. Give batches.")
        samples = activation_samples(model, batches) if function.needs_data else {}
        skipped = [(fqn, "ignored") for fqn in found if fqn not in chosen]
        idle = [fqn for fqn in chosen if function.needs_data and fqn not in samples]
        skipped += [(fqn, "the forward doesn't call it") for fqn in idle]
        edit = ReplaceActivations(
            {fqn: function.fitted(samples[fqn]) if fqn in samples else function for fqn in chosen if fqn not in idle}
        )
        made = edit.replay(model).eval()
        before, after = activation_sparsity(model, batches), activation_sparsity(made, batches)
        facts = {fqn: {"before": before[fqn], "after": part} for fqn, part in after.items()}
        return Done(made, edit, tuple(skipped), _notes(facts), {"activation_sparsity": facts})


def _notes(facts: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    if not facts:
        return ()
    before, after = (sum(fact[when] for fact in facts.values()) / len(facts) for when in ("before", "after"))
    return (f"{len(facts)} activations: {before:.1%} zeros before, {after:.1%} after, on average".replace("%", " %"),)
