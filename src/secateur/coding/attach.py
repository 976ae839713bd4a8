"""Putting codings on weights, finding them, and making them permanent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.coding.base import Coding
from secateur.coding.mask import Mask
from secateur.errors import PlanError
from secateur.surgery import copy_model
from secateur.tensors import modules_of


def codable(model: nn.Module, *, min_dims: int = 2) -> tuple[dict[str, Tensor], tuple[tuple[str, str], ...]]:
    """The weights that a coding may be put on, as the model computes with them, by the key that users know.

    Args:
        min_dims: axes that a weight must have; by default biases and the scales of norms are left alone.
    Returns:
        (`layer1.conv.weight` → its present value, without gradient), and what was left out as (key, reason).
    """
    found: dict[str, Tensor] = {}
    skipped: list[tuple[str, str]] = []
    owners: dict[int, list[str]] = {}
    for fqn, module in modules_of(model):
        coded = _coded(module)
        for name, parameter in {**module._parameters, **coded}.items():
            key = f"{fqn}.{name}" if fqn else name
            if parameter is None or parameter.ndim < min_dims or ".parametrizations." in f".{key}":
                continue
            owners.setdefault(id(parameter), []).append(key)
            if isinstance(module, nn.RNNBase):
                skipped.append((key, "recurrent layers keep flat copies of their weights"))
            else:
                found[key] = parameter
        foreign = [name for name in _stacks(module) if name not in coded]
        skipped += [(f"{fqn}.{name}" if fqn else name, "another parametrization computes it") for name in foreign]
    tied = [key for keys in owners.values() if len(keys) > 1 for key in keys]
    skipped += [(key, "tied to another weight") for key in tied if key in found]
    return {key: value_of(model, key) for key in found if key not in tied}, tuple(skipped)


def value_of(model: nn.Module, key: str) -> Tensor:
    """A tensor of the model as it computes with it, coded or not, without gradient."""
    fqn, _, name = key.rpartition(".")
    value: Tensor = getattr(model.get_submodule(fqn), name)
    return value.detach()


def attach_(model: nn.Module, key: str, coding: Coding) -> None:
    """Put a coding on a weight, on top of those that are there; the free weight stays what it is.

    Raises:
        PlanError: the model has no such weight, something else computes it, or it is coded by more than masks already.

    >>> import torch
    >>> from secateur.coding.mask import Mask
    >>> net = nn.Sequential(nn.Linear(2, 1))
    >>> attach_(net, "0.weight", Mask(torch.tensor([[True, False]])))
    >>> int((net[0].weight != 0).sum()), list(codings_of(net))
    (1, ['0.weight'])
    """
    fqn, _, name = key.rpartition(".")
    try:
        module = model.get_submodule(fqn)
        weight = getattr(module, name)
    except AttributeError as error:
        raise PlanError(f"The model has no weight '{key}'. The codings were made for another architecture.") from error
    if not isinstance(weight, Tensor) or (parametrize.is_parametrized(module, name) and name not in _coded(module)):
        raise PlanError(f"'{key}' is no weight that can be coded. Leave it out.")
    if below := [c.kind for c in codings_of(module).get(name, []) if c.kind != "mask"]:
        raise PlanError(f"'{key}' is coded as {below[0]} already, and only a mask may lie below another coding.")
    was_training = module.training
    # unsafe: it skips a trial call, not a check that matters here: a coding keeps shape and dtype by contract.
    parametrize.register_parametrization(module, name, coding.train(was_training), unsafe=True)


def codings_of(model: nn.Module) -> dict[str, list[Coding]]:
    """The codings of each coded weight, the first one first, by the weight's key."""
    return {
        (f"{fqn}.{name}" if fqn else name): [part for part in stack.children() if isinstance(part, Coding)]
        for fqn, module in modules_of(model)
        for name, stack in _stacks(module).items()
        if name in _coded(module)
    }


def settle_(model: nn.Module) -> None:
    """Give each free weight the value of its coded one: what is saved and loaded again is then all that there is.

    The model computes the same, and criteria see the weights that count. Training moves on from there. What a quantizer
    above a mask rounds to zero is masked from then on.
    """
    with torch.no_grad():
        for module in model.modules():
            for name, free in _coded(module).items():
                free.copy_(getattr(module, name))
                tighten_([part for part in _stacks(module)[name].children() if isinstance(part, Coding)], free)


def tighten_(stack: Sequence[Coding], weight: Tensor) -> None:
    """Let the masks that lie below another coding keep what is not zero in the coded weight, and nothing else."""
    for coding in stack[:-1]:
        assert isinstance(coding, Mask)  # `attach_` lets nothing else lie below
        coding.mask = (weight != 0).to(coding.mask.device)


def bake_(model: nn.Module) -> None:
    """Make every coded weight a plain one of the same value: faster to run, and no longer kept by training."""
    for module in list(model.modules()):
        for name, free in _coded(module).items():
            value = getattr(module, name).detach()
            _drop(module, name)
            module.register_parameter(name, nn.Parameter(value, requires_grad=free.requires_grad))


def bake(model: nn.Module) -> nn.Module:
    """`bake_` of a copy."""
    made = copy_model(model)
    bake_(made)
    return made


def _drop(module: nn.Module, name: str) -> None:
    """Take a parametrization away. Copies share their class, so torch's own removal would take it from them as well."""
    stacks = module._modules["parametrizations"]
    assert isinstance(stacks, nn.ModuleDict)
    del stacks[name]
    kind = type(module)
    if not len(stacks):
        del module._modules["parametrizations"]
        module.__class__ = kind.__bases__[0]
        return
    rest = {key: value for key, value in vars(kind).items() if key not in (name, "__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, rest)


def _stacks(module: nn.Module) -> dict[str, nn.Module]:
    stacks = module._modules.get("parametrizations")
    return dict(stacks.items()) if isinstance(stacks, nn.ModuleDict) else {}


def _coded(module: nn.Module) -> dict[str, Tensor]:
    """The free weights of a module that codings stand on, by name."""
    return {
        name: stack.original  # type: ignore[misc]
        for name, stack in _stacks(module).items()
        if all(isinstance(part, Coding) for part in stack.children())
    }
