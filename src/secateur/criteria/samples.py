"""The forms of a batch: inputs with labels or without."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from secateur.errors import ConfigError
from secateur.tensors import Inputs


def split(batch: Any, index: int) -> tuple[Inputs, Any]:
    """Return (inputs, labels) of batch number `index`: a pair, or a dict with an entry "labels".

    Raises:
        ConfigError: there are no labels.
    """
    if isinstance(batch, Mapping):
        if batch.get("labels") is not None:
            return {key: value for key, value in batch.items() if key != "labels"}, batch["labels"]
        found = f"a dict with keys {', '.join(map(str, batch))}"
    elif isinstance(batch, (tuple, list)) and len(batch) == 2 and batch[1] is not None:
        return batch[0], batch[1]
    else:
        found = f"{type(batch).__name__}" + (f" of {len(batch)}" if isinstance(batch, (tuple, list)) else "")
    raise ConfigError(
        f"Batch {index} has no labels: it is {found}. "
        "Gradients of a loss take (inputs, labels) pairs or dicts with 'labels'. "
        "Without labels, choose a criterion that needs none, such as 'l2' or 'kl'."
    )


def inputs_of(batch: Any) -> Inputs:
    """Return the inputs of a batch: a tensor, the first of a pair or of a list of one, a dict without its "labels".

    >>> inputs_of({"x": 1, "labels": 2}), inputs_of((1, 2)), inputs_of([1])
    ({'x': 1}, 1, 1)
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != "labels"}
    if isinstance(batch, (tuple, list)) and len(batch) in (1, 2):
        found: Inputs = batch[0]
        return found
    raise ConfigError(
        f"A batch is {type(batch).__name__}. Pass a tensor of inputs, an (inputs, labels) pair, or a dict of arguments."
    )
