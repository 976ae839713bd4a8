"""Surgery: the one place that changes a model. Slices tensors, sets the numbers that follow, and nothing else."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import PlanError, VerifyError
from secateur.plans import AttributeChange, Plan
from secateur.tensors import Inputs, copy_around, distinct, like, named_tensors
from secateur.verification import verify as run_verify

_PATH = re.compile(r"(?!__)[A-Za-z_]\w*(\.(?!__)[A-Za-z_]\w*)*(\[\d+\])?")


@torch.inference_mode(False)
def apply(model: nn.Module, plan: Plan, *, inputs: Inputs | None = None, verify: bool = True) -> nn.Module:
    """Return a smaller model that keeps what `plan` keeps. The original is untouched and shares no memory with it.

    Args:
        model: the model that the plan was made for, or another checkpoint of the same architecture.
        inputs: example inputs for the verification; without them it makes some of the plan's own shapes.
        verify: prove the result first (see `secateur.verify`).
    Returns:
        The smaller model, on the same device, in the same training mode, without gradients.
    Raises:
        PlanError: the plan does not fit the model; every difference is listed.
        VerifyError: the smaller model does not compute what the plan says.
    """
    small = _cut_copy(model, plan)
    if verify:
        report = run_verify(model, small, plan, inputs)
        if not report.is_ok:
            raise VerifyError(f"The pruned model fails its proof. The original is unchanged.\n{report}")
    return small


@torch.inference_mode(False)
def apply_(
    model: nn.Module,
    plan: Plan,
    *,
    inputs: Inputs | None = None,
    verify: bool = True,
    optimizer: torch.optim.Optimizer | None = None,
) -> None:
    """`apply` in place: the same module and parameter objects get smaller, so references to them stay valid.

    Gradients are sliced along, and so is the state of `optimizer` (momentum, moments) where one is given.
    An error at any point, Ctrl-C included, leaves model and optimizer as they were.
    Raises:
        PlanError: the plan does not fit the model, or the optimizer holds state that can't be sliced.
        VerifyError: the smaller model does not compute what the plan says.
    """
    states = _cut_states(model, plan, optimizer) if optimizer is not None else []
    small = named_tensors(apply(model, plan, inputs=inputs, verify=verify))
    undo: list[Callable[[], None]] = []
    try:
        for key, tensor in distinct(named_tensors(model)).items():
            if key in plan.tensors:
                grad = tensor.grad
                undo.append(_restore(tensor, tensor.data, grad))
                tensor.grad = None
                tensor.data = small[key].data
                tensor.grad = None if grad is None else _cut(grad, plan.keep(key))
        for state, name, value in states:
            undo.append(lambda s=state, n=name, old=state[name]: s.__setitem__(n, old))  # type: ignore[misc]
            state[name] = value
        for change in plan.attributes:
            set_number(model, change.fqn, change.path, change.new)
            undo.append(lambda c=change: set_number(model, c.fqn, c.path, c.old))  # type: ignore[misc]
    except BaseException:
        for step in reversed(undo):
            step()
        raise


def get_number(model: nn.Module, fqn: str, path: str) -> Any:
    """Read `path` (`num_heads`, `sizes[1]`, `config.hidden_size`) of a submodule. Raises PlanError where it is gone."""
    holder, last = _resolve(model, fqn, path)
    try:
        return holder[last] if isinstance(last, int) else getattr(holder, last)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise PlanError(
            f"The model has no '{fqn}.{path}' ({error}). The plan was made for another architecture."
        ) from error


def set_number(model: nn.Module, fqn: str, path: str, value: int) -> None:
    """Set `path` of a submodule; an element of a tuple or list is replaced in a new one of the same type."""
    holder, last = _resolve(model, fqn, path)
    if isinstance(last, int):
        items = list(holder)
        items[last] = value
        made = (
            items if isinstance(holder, list) else torch.Size(items) if isinstance(holder, torch.Size) else tuple(items)
        )
        outer, name = _resolve(model, fqn, path[: path.rindex("[")])
        _set(outer, name, made)
    else:
        _set(holder, last, value)


def _set(holder: Any, name: str | int, value: Any) -> None:
    if isinstance(name, int):
        raise PlanError(
            "A number inside nested lists can't be set. Report the model; its group stays whole until then."
        )
    # Modules have a __setattr__ of their own; a plain number needs none of it, and a frozen config must be set too.
    object.__setattr__(holder, name, value)


def _resolve(model: nn.Module, fqn: str, path: str) -> tuple[Any, str | int]:
    try:
        holder: Any = model.get_submodule(fqn)
    except AttributeError as error:
        raise PlanError(f"The model has no module '{fqn}'. The plan was made for another architecture.") from error
    parts = _parts(path)
    for part in parts[:-1]:
        holder = holder[part] if isinstance(part, int) else getattr(holder, part)
    return holder, parts[-1]


@functools.lru_cache(maxsize=1 << 10)
def _parts(path: str) -> tuple[str | int, ...]:
    """Names and places in a path: ("sizes", 1) in `sizes[1]`."""
    if not _PATH.fullmatch(path):
        raise PlanError(f"'{path}' is no path of a number, such as `num_heads`, `sizes[1]` or `config.hidden_size`.")
    return tuple([int(i) if i else name for name, i in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path)])


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model, its tensors included; ties stay ties, and gradients stay behind."""
    return copy_around(model, {key: like(t, t.detach().clone()) for key, t in distinct(named_tensors(model)).items()})


def replace_modules_(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put other modules in place of some, by fqn; a module that several names share is replaced under each.

    Raises:
        PlanError: the model has no such module, or the name is the model itself.
    """
    for fqn, module in new.items():
        try:
            old = model.get_submodule(fqn)
            if not fqn:
                raise AttributeError("that is the model itself")
        except AttributeError as error:
            raise PlanError(f"The model has no module '{fqn}' to replace ({error}).") from error
        for holder in list(model.modules()):
            for key, child in list(holder._modules.items()):
                if child is old:
                    holder._modules[key] = module


def _cut_copy(model: nn.Module, plan: Plan) -> nn.Module:
    tensors = distinct(named_tensors(model))
    check_fits(model, plan)
    new = {
        key: like(t, _cut(t.detach(), plan.keep(key)) if key in plan.tensors else t.detach().clone())
        for key, t in tensors.items()
    }
    small = copy_around(model, new)
    for change in plan.attributes:
        set_number(small, change.fqn, change.path, change.new)
    return small


def check_fits(model: nn.Module, plan: Plan) -> None:
    """Raise PlanError, with every difference listed, where a plan was made for another architecture."""
    tensors = named_tensors(model)
    wrong = [f"'{key}' is missing" for key in plan.tensors if key not in tensors]
    for key in plan.tensors:
        if key in tensors and tuple(tensors[key].shape) != plan.shape_before(key):
            wrong.append(f"'{key}' is {tuple(tensors[key].shape)}, the plan expects {plan.shape_before(key)}")
    if not wrong:
        for a in plan.attributes:
            if (found := get_number(model, a.fqn, a.path)) != a.old:
                wrong.append(f"'{a.fqn}.{a.path}' is {found}, the plan expects {a.old}")
    if wrong:
        shown = "; ".join(wrong[:8]) + (f"; and {len(wrong) - 8} more" if len(wrong) > 8 else "")
        raise PlanError(f"The plan does not fit {type(model).__name__}: {shown}. Make a plan for this model.")


def _cut(tensor: Tensor, keep: list[Tensor | None]) -> Tensor:
    """Index each axis; a tensor that loses nothing is copied."""
    out = tensor
    for axis, index in enumerate(keep):
        if index is not None:
            out = out.index_select(axis, index.to(out.device))
    return out.clone() if out is tensor else out


def _restore(tensor: Tensor, data: Tensor, grad: Tensor | None) -> Callable[[], None]:
    def undo() -> None:
        tensor.grad = None
        tensor.data = data
        tensor.grad = grad

    return undo


def _cut_states(
    model: nn.Module, plan: Plan, optimizer: torch.optim.Optimizer
) -> list[tuple[dict[str, Any], str, Tensor]]:
    """New values for optimizer state, computed before anything is touched: (state, name, sliced tensor)."""
    keys = {id(t): key for key, t in distinct(named_tensors(model)).items()}
    changes = []
    for parameter, state in optimizer.state.items():
        key = keys.get(id(parameter), "")
        if key not in plan.tensors:
            continue
        for name, value in state.items():
            if not isinstance(value, Tensor) or value.numel() == 1:
                continue
            if value.shape != parameter.shape:
                raise PlanError(
                    f"{type(optimizer).__name__} keeps '{name}' of '{key}' as {tuple(value.shape)}, not as the"
                    f" parameter's {tuple(parameter.shape)}, so it can't be sliced along."
                    " Make a new optimizer after pruning."
                )
            changes.append((state, name, _cut(value, plan.keep(key))))
    return changes


__all__ = [
    "AttributeChange",
    "apply",
    "apply_",
    "check_fits",
    "copy_model",
    "get_number",
    "replace_modules_",
    "set_number",
]
