"""Which step may follow which: each says what weights it can work on, and what it leaves."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.errors import ConfigError
from secateur.steps.base import FORMS, Step


def check_order(steps: Sequence[Step], *, has_labels: bool = True) -> None:
    """Refuse a list of steps that can't be carried out, before any of it is.

    Raises:
        ConfigError: there are none; a step meets weights of a form that it can't work on, or lacks labels.

    >>> from secateur.steps.finetune import Finetune
    >>> from secateur.steps.prune import Prune
    >>> check_order([Prune(), Finetune()])
    """
    if not steps:
        raise ConfigError("There are no steps. Give at least one, such as a prune step.")
    made: dict[str, tuple[int, str]] = {}  # form → the step that first left it
    for i, step in enumerate(steps, 1):
        if step.needs_labels and not has_labels:
            raise ConfigError(f"Step {i} ({step.name}) needs labels, and the data has none. Leave the step out.")
        for form, (before, name) in made.items():
            if form not in step.accepts:
                raise ConfigError(
                    f"Step {i} ({step.name}) can't follow step {before} ({name}): it would meet {form} weights"
                    f" ({FORMS[form]}), which it can't work on. Put {step.name} before {name}."
                )
        made |= {form: (i, step.name) for form in sorted(step.leaves) if form not in made}
