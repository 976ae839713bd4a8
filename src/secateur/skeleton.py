"""A skeleton: a model's structure around twins, which takes on widths again and again and runs at no cost."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from secateur.surgery import set_number
from secateur.tensors import distinct, modules_of, named_tensors, skeleton
from secateur.twins import Twin, plain_form


class Skeleton:
    """One copy of a model for all attempts of a repair. A capture leaves it as it was, so each starts afresh."""

    def __init__(self, model: nn.Module) -> None:
        self.model = skeleton(model)
        tensors = distinct(named_tensors(self.model))
        self._twins = {key: (t, t.form) for key, t in tensors.items() if isinstance(t, Twin)}
        self._modules = dict(modules_of(self.model))  # `get_submodule` walks to each again
        self._numbers: dict[tuple[str, str], int] = {}  # what was set, as it was before

    def resize(self, shapes: Mapping[str, tuple[int, ...]], numbers: Mapping[tuple[str, str], tuple[int, int]]) -> None:
        """Take on shapes of tensors by key, and (old, new) numbers of modules by (fqn, path); all else as in the model.

        Raises:
            PlanError: a number can't be set.
        """
        for key, (t, own) in self._twins.items():
            shape = shapes.get(key, own.shape)
            form = own if shape == own.shape else plain_form(shape, own.dtype, own.device)
            if t.form is not form:
                t.become(form)
        for (fqn, path), old in self._numbers.items():
            set_number(self._modules[fqn], "", path, old)
        self._numbers = {place: old for place, (old, _) in numbers.items()}
        for (fqn, path), (_, new) in numbers.items():
            set_number(self._modules[fqn], "", path, new)
