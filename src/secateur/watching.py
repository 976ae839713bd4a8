"""Watching modules at work: what they read and give, whatever the code around them does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from secateur.forward import plain_forward
from secateur.tensors import Inputs, on_device

See = Callable[[str, Any, Any], None]
"""Called after each call of a module as (its name, its first argument, what it gave)."""


def watch(
    model: nn.Module,
    modules: Mapping[str, nn.Module],
    batches: Iterable[Inputs],
    see: See,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Run a model in eval mode and without gradients, and show each call of some of its modules.

    Args:
        modules: by the name that `see` is told.
        batches: model inputs without labels.
        after: called after each batch.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> watch(net, {"relu": net[1]}, [torch.zeros(1, 2)], lambda name, x, y: print(name, x.shape, y.shape))
    relu torch.Size([1, 3]) torch.Size([1, 3])
    """
    with plain_forward(model), watching(modules, see):
        for inputs in batches:
            args, kwargs = on_device(model, inputs)
            model(*args, **kwargs)
            after()


@contextmanager
def watching(modules: Mapping[str, nn.Module], see: See) -> Iterator[None]:
    """Show each call of modules inside, however they are run."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, out: see(name, first_of(args, kwargs), out)

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(module.register_forward_hook(hook(name), with_kwargs=True))
        yield


def first_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a call, however it was passed."""
    return args[0] if args else next(iter(kwargs.values()), None)
