"""Checks before training, and the search for the module where numbers stopped being finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from secateur.data.arrays import ArrayDataset
from secateur.data.batches import Batch, batches, forward, labels_of, length, logits_of
from secateur.errors import DataError, SecateurError, TrainError
from secateur.measure.modes import device_of, eval_mode


def check_start(model: nn.Module, train: Dataset[Any], val: Dataset[Any] | None) -> None:
    """Run a few samples through the model, without a change to it, and name what does not fit.

    Raises:
        TrainError: the model has no parameters, or all are frozen.
        DataError: data is empty, the model cannot take it, or labels lie outside its classes.
    """
    parameters = list(model.parameters())
    if not any(p.requires_grad for p in parameters):
        what = "has only frozen parameters: set requires_grad_(True) on some" if parameters else "has no parameters"
        raise TrainError(f"{type(model).__name__} {what}. There is nothing to train.")
    for name, data in {"train": train, "val": val}.items():
        if data is None:
            continue
        try:
            _check_fit(model, data)
        except SecateurError as err:
            raise DataError(f"The {name} data does not fit {type(model).__name__}. {err}") from err


def _check_fit(model: nn.Module, data: Dataset[Any]) -> None:
    head = torch.utils.data.Subset(data, range(min(2, length(data))))
    batch = next(iter(batches(head, device=device_of(model))))
    with eval_mode(model), torch.no_grad():
        try:
            logits = logits_of(forward(model, batch))
        except (RuntimeError, IndexError, TypeError, ValueError) as err:
            raise DataError(f"A batch of {_describe(batch)} failed: {err}. Check channels, sizes and dtypes.") from err
    labels = data.y if isinstance(data, ArrayDataset) else labels_of(batch)
    if logits.ndim == 2 and labels.ndim == 1 and not labels.is_floating_point():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise DataError(f"Labels run from {low} to {high}, but the model has {logits.shape[1]} classes.")


def _describe(batch: Batch) -> str:
    if isinstance(batch, Mapping):
        return ", ".join(f"{key} {tuple(value.shape)}" for key, value in batch.items())
    return f"x {tuple(batch[0].shape)}, y {tuple(batch[1].shape)}"


def nonfinite_cause(model: nn.Module, batch: Batch) -> str:
    """Say in a sentence where NaN or Inf comes from: the weights, the inputs, or the first module to give it.

    Runs the batch again with a hook on every module; buffers such as running statistics may move by it.
    """
    weights = [key for key, p in model.named_parameters() if not _is_finite(p)]
    if weights:
        return f"The weights are no longer finite: {', '.join(weights[:3])} ({len(weights)} in all)."
    inputs = batch if isinstance(batch, Mapping) else {"x": batch[0], "y": batch[1]}
    if bad := [key for key, value in inputs.items() if not _is_finite(value)]:
        return f"The data is not finite: {', '.join(bad)} of this batch."
    found: list[str] = []

    def watch(fqn: str, module: nn.Module) -> Any:
        def hook(_module: nn.Module, _args: Any, outputs: Any) -> None:
            if not found and not all(map(_is_finite, _tensors(outputs))):
                found.append(f"'{fqn}' ({type(module).__name__})" if fqn else f"the model ({type(module).__name__})")

        return module.register_forward_hook(hook)

    handles = [watch(fqn, module) for fqn, module in model.named_modules()]
    try:
        with torch.no_grad():
            forward(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"The first output that is not finite is that of {found[0]}."
    return "Every module's output is finite, so the loss itself, or its gradient, is not."


def _is_finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _tensors(outputs: Any) -> Iterator[Tensor]:
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping):
        for value in outputs.values():
            yield from _tensors(value)
    elif isinstance(outputs, tuple | list):
        for value in outputs:
            yield from _tensors(value)
