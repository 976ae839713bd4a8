"""The tensors of a model and of its calls: naming them, finding them, and copying a model around other ones."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.utils import _pytree as pytree

from secateur.errors import PlanError
from secateur.twins import twin

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def as_call(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Turn the three forms of `inputs` into positional and keyword arguments.

    >>> as_call((1, 2))
    ((1, 2), {})
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, tuple | list):
        return tuple(inputs), {}
    return (inputs,), {}


def on_device(model: nn.Module, inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of a call, copied to where the first parameter is: a forward may write into them."""
    device = next(model.parameters()).device
    copied: tuple[tuple[Any, ...], dict[str, Any]] = pytree.tree_map_only(
        Tensor, lambda t: t.to(device, copy=True), as_call(inputs)
    )
    return copied


def tensors_in(value: Any) -> list[Tensor]:
    """Every tensor inside lists, tuples, dicts, dataclasses and objects such as Hugging Face's `ModelOutput`."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in tensors_in(v)]
    if isinstance(value, Sequence | set) and not isinstance(value, str):
        return [t for v in value for t in tensors_in(v)]
    if hasattr(value, "__dict__"):
        return [t for v in vars(value).values() if v is not value for t in tensors_in(v)]
    return []


def wide(t: Tensor) -> Tensor:
    """The same numbers in float32 at least: sums, squares and small steps are lost in half precision."""
    return t.to(wide_dtype(t.dtype))


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Float32, or the dtype itself where it is wider."""
    return torch.promote_types(dtype, torch.float32)


class Identities(MutableMapping[Tensor, Any]):
    """Things by tensor, compared by identity. It keeps its tensors alive, so that no identity is used twice."""

    def __init__(self) -> None:
        self._items: dict[int, tuple[Tensor, Any]] = {}

    def __getitem__(self, key: Tensor) -> Any:
        return self._items[id(key)][1]

    def get(self, key: Tensor, default: Any = None) -> Any:
        """The thing of a tensor, or the default."""
        item = self._items.get(id(key))
        return default if item is None else item[1]

    def __setitem__(self, key: Tensor, value: Any) -> None:
        self._items[id(key)] = (key, value)

    def __delitem__(self, key: Tensor) -> None:
        del self._items[id(key)]

    def __contains__(self, key: object) -> bool:
        return id(key) in self._items

    def __iter__(self) -> Iterator[Tensor]:
        return iter([key for key, _ in self._items.values()])

    def __len__(self) -> int:
        return len(self._items)


def modules_of(model: nn.Module, fqn: str = "") -> list[tuple[str, nn.Module]]:
    """Every module with its fqn, parents first, a shared one under each of its names.

    `named_modules` says the same, but hands each module through as many generators as it lies deep.

    >>> [fqn for fqn, _ in modules_of(nn.Sequential(nn.Sequential(nn.ReLU())))]
    ['', '0', '0.0']
    """
    found = [(fqn, model)]
    for name, child in model._modules.items():
        if child is not None:
            found += modules_of(child, f"{fqn}.{name}" if fqn else name)
    return found


def module_lists(model: nn.Module) -> list[tuple[str, nn.ModuleList | nn.Sequential]]:
    """Every `ModuleList` and `Sequential` by fqn; a weight's parametrizations are no such list of layers."""
    kinds = nn.ModuleList | nn.Sequential
    return [(fqn, m) for fqn, m in modules_of(model) if isinstance(m, kinds) and not isinstance(m, ParametrizationList)]


HELD_BY_ALL = frozenset(vars(nn.Module()))  # what torch gives every module, nothing of the model's


_OTHERS: set[type] = set()  # kinds of attributes that are no tensors: a set looks at many at once


def _holds_tensor(module: nn.Module) -> bool:
    """True where a module may hold a tensor as a plain attribute."""
    held = vars(module).values()
    if _OTHERS.issuperset(map(type, held)):
        return False
    _OTHERS.update(kind for kind in map(type, held) if not issubclass(kind, Tensor))
    return not _OTHERS.issuperset(map(type, held))


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, buffers and plain tensor attributes by fqn, a tied tensor under each of its names.

    A plain attribute (`self.scale = torch.ones(8)`) is not in the state dict, but it must shrink with the rest.
    """
    parameters: dict[str, Tensor] = {}
    buffers: dict[str, Tensor] = {}
    attributes: dict[str, Tensor] = {}
    seen: set[int] = set()
    for fqn, module in modules_of(model):
        start = f"{fqn}." if fqn else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                parameters[start + name] = parameter
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                buffers[start + name] = buffer
        if _holds_tensor(module):
            for name, held in vars(module).items():
                if isinstance(held, Tensor):
                    attributes[start + name] = held
    for key, tensor in (*buffers.items(), *attributes.items()):
        parameters.setdefault(key, tensor)
    return parameters


def distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under its first key."""
    first: dict[int, str] = {}
    for key, tensor in tensors.items():
        first.setdefault(id(tensor), key)
    return {key: tensors[key] for key in first.values()}


def copy_around(model: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Copy a model's modules around other tensors, given by first key; ties and lists of parameters stay what they are.

    The copy runs the same operators in the same order, in code that loops over a set of strings or numbers too.

    Raises:
        PlanError: the model holds something that can't be deep-copied.
    """
    memo: dict[int, Any] = {id(t): tensors[key] for key, t in distinct(named_tensors(model)).items()}
    held = [value for module in model.modules() for value in vars(module).values()]
    sets = [s for s in held if type(s) is set and all(isinstance(item, str | int) for item in s)]
    memo |= {id(s): s.copy() for s in sets}  # deepcopy fills a new one, which may give them in another order
    memo |= {id(d): d.copy() for d in held if type(d) is OrderedDict and not d}  # of hooks: deepcopy rebuilds each
    try:
        return copy.deepcopy(model, memo)  # the memo says that the tensors are copied already
    except Exception as error:
        raise PlanError(
            f"{type(model).__name__} can't be copied: {type(error).__name__}: {error}."
            " Remove what can't be deep-copied (open files, locks, compiled graphs) and attach it again afterwards."
        ) from error


def like(old: Tensor, data: Tensor) -> Tensor:
    """Data in the wrapping of the tensor that it replaces."""
    if isinstance(old, nn.Parameter):
        return nn.Parameter(data, requires_grad=old.requires_grad)
    return data.requires_grad_(old.requires_grad and old.is_leaf)


def skeleton(model: nn.Module, shapes: Mapping[str, tuple[int, ...]] | None = None) -> nn.Module:
    """A model's structure around twins, some of other shapes: it runs, and costs nothing."""
    tensors = distinct(named_tensors(model))
    return copy_around(model, {key: like(t, twin(t, (shapes or {}).get(key))) for key, t in tensors.items()})
