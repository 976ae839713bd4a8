"""Calibrating a network block by block, so that beside the data only what one block gives for it is in memory.

A network of n blocks in a row is run n times, and costs little more than one forward: in the i-th run, the blocks
before i hand on what block i - 1 gave, and the run ends behind block i. All code of the network around its blocks runs,
so that masks, positions and caches are what they are in its own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import ConfigError, GroupError
from secateur.layers import Layer, Rows, sum_over_inputs
from secateur.measure.modes import eval_mode
from secateur.tensors import Inputs, module_lists, on_device, tensors_in

_TOLERANCE = 1e-4
"""Relative; what rounding explains between two runs of a block."""


@dataclass(frozen=True)
class Stage:
    """A part of a network, and how to run it on all calibration batches, as often as wanted.

    Attributes:
        fqn: of the block; "" for what comes before the blocks, and for what comes after.
        run: calls the part's modules with what they read, given the present weights of what comes before.
    """

    fqn: str
    run: Callable[[], None]


def stages(model: nn.Module, batches: Sequence[Inputs], blocks: Sequence[str] = ()) -> Iterator[Stage]:
    """Go through a network: what comes before its blocks, block after block, what comes after.

    When the next stage is asked for, the block at hand is run once more, so that the next one reads what it gives now.

    Args:
        model: the network. Its weights may be changed between stages.
        batches: model inputs without labels.
        blocks: fqns in the order of the forward, such as `find_chain` gives; without any, the network is one stage.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU())
    >>> [stage.fqn for stage in stages(net, [torch.zeros(1, 2)], ["0", "1"])]
    ['', '0', '1', '']
    """
    chain = _Chain(model, batches, [model.get_submodule(fqn) for fqn in blocks])
    if blocks:
        yield Stage("", chain.run_before)
    for i, fqn in enumerate(blocks):
        yield Stage(fqn, lambda i=i: chain.run(i))  # type: ignore[misc]
        chain.advance(i)
    yield Stage("", lambda: chain.run(len(blocks)))


def sums_by_stage(
    model: nn.Module, batches: Sequence[Inputs], blocks: Sequence[str], layers: Mapping[str, Layer], of: Rows
) -> Iterator[tuple[Layer, Tensor]]:
    """Each layer with the sum of `of(rows)` over all that it reads, stage by stage; those never called are left out.

    A layer may be changed before the next one is asked for. Later stages then read what it gives from there on.

    Args:
        model, batches, blocks: as for `stages`.
        layers: by key, as `layers_of` gives them.
    Raises:
        GroupError: a layer reads NaN or Inf.
    """
    left = dict(layers)
    for stage in stages(model, batches, blocks):
        inside = tuple(f"{fqn}." for fqn in ([stage.fqn] if stage.fqn else blocks))
        here = {key: layer for key, layer in left.items() if key.startswith(inside) == bool(stage.fqn)}
        for key, seen in sum_over_inputs(here, stage.run, of).items():
            if not torch.isfinite(seen).all():
                raise GroupError(f"What '{key}' reads holds NaN or Inf. Check the calibration data.")
            yield left.pop(key), seen


def choose_chain(model: nn.Module, batch: Inputs, *, stream: bool | None) -> list[str]:
    """The blocks that a step goes through one by one: those of `find_chain`, or none where `stream` is False.

    Raises:
        ConfigError: `stream` is True, and there are no such blocks.
    """
    blocks = [] if stream is False else find_chain(model, batch)
    if stream and not blocks:
        raise ConfigError(
            f"{type(model).__name__} has no blocks that run one after another, each reading only what the one before"
            " gives. Set stream=False, which holds sums over the inputs of all layers at once."
        )
    return blocks


def find_chain(model: nn.Module, batch: Inputs) -> list[str]:
    """The repeated blocks of a network, by fqn: the list of modules of one class that holds most parameters.

    None where that is less than half of what is no embedding table, or where the blocks do not run once each, one after
    another, each knowing of those before only what its predecessor gave (a skip connection over a block tells more).
    That is tried out on a batch, at twice the cost of a forward.

    >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), nn.Linear(2, 1))
    >>> find_chain(net, torch.zeros(1, 2))
    ['0.0', '0.1']
    """
    alike = [
        [f"{fqn}.{name}" if fqn else name for name in module._modules]
        for fqn, module in module_lists(model)
        if len(module) > 1 and len({type(item) for item in module}) == 1
    ]
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}

    def size(fqns: Sequence[str]) -> int:
        held = {id(p): p.numel() for fqn in fqns for p in model.get_submodule(fqn).parameters()}
        return sum(n for key, n in held.items() if key not in tables)

    blocks = max(alike, key=size, default=[])
    return blocks if 2 * size(blocks) >= max(1, size([""])) and _is_chain(model, blocks, batch) else []


class _Chain:
    """Blocks that hand data on to each other, and what the last finished one gave for each batch."""

    def __init__(self, model: nn.Module, batches: Sequence[Inputs], blocks: list[nn.Module]) -> None:
        self.model = model
        self.batches = batches
        self.blocks = blocks
        self.outputs: list[Any] = [None] * len(batches)

    def run_before(self) -> None:
        """Run what comes before the first block."""
        for n in range(len(self.batches)):
            handle = self.blocks[0].register_forward_pre_hook(_stop)
            self._forward(n, 0, handle)

    def run(self, i: int) -> None:
        """Run block i, or what comes after all blocks."""
        for n in range(len(self.batches)):
            self.output(i, n)

    def advance(self, i: int) -> None:
        """Run block i, and keep what it gives."""
        for n in range(len(self.batches)):
            self.outputs[n] = self.output(i, n)

    def output(self, i: int, n: int) -> Any:
        """What block i gives for batch n; behind the last block, what the network gives."""
        handle = self.blocks[i].register_forward_hook(_stop) if i < len(self.blocks) else None
        return self._forward(n, i, handle)

    def _forward(self, n: int, n_done: int, handle: Any) -> Any:
        def hand_on(*args: Any, **kwargs: Any) -> Any:
            return pytree.tree_map_only(Tensor, torch.clone, self.outputs[n])  # it may be written into

        args, kwargs = on_device(self.model, self.batches[n])
        try:
            with torch.no_grad(), eval_mode(self.model), _forwards(dict.fromkeys(self.blocks[:n_done], hand_on)):
                return self.model(*args, **kwargs)
        except _Stopped as end:
            return end.output
        finally:
            if handle is not None:
                handle.remove()


class _Stopped(Exception):
    """Ends a forward at a block."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stop(module: nn.Module, args: Any, output: Any = None) -> None:
    raise _Stopped(output)


@contextmanager
def _forwards(instead: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Give modules another forward inside."""
    before = {module: vars(module).get("forward") for module in instead}
    for module, forward in instead.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, own in before.items():
            del vars(module)["forward"]
            if own is not None:  # others, such as Accelerate, replace forwards too
                vars(module)["forward"] = own


def _is_chain(model: nn.Module, fqns: list[str], batch: Inputs) -> bool:
    """Whether each block, and what follows the last, gives the same when only its predecessor's output is known."""
    blocks = [model.get_submodule(fqn) for fqn in fqns]
    seen: list[tuple[nn.Module, Tensor]] = []
    handles = [b.register_forward_hook(lambda m, args, out: seen.append((m, _digest(out)))) for b in blocks]
    whole = _digest(_Chain(model, [batch], []).output(0, 0))
    for handle in handles:
        handle.remove()
    if [block for block, _ in seen] != blocks:
        return False
    chain = _Chain(model, [batch], blocks)
    for i, (_, expected) in enumerate(seen):
        chain.advance(i)
        if not torch.allclose(_digest(chain.outputs), expected, rtol=_TOLERANCE):
            return False
    return torch.allclose(_digest(chain.output(len(blocks), 0)), whole, rtol=_TOLERANCE)


def _digest(value: Any) -> Tensor:
    """Numbers that tell outputs apart. The first tensor counts: behind it may be a cache, which is not handed on."""
    first = next((t for t in tensors_in(value) if t.is_floating_point()), torch.zeros(1)).double()
    return torch.stack([first.sum(), first.abs().sum(), first.square().sum(), first.flatten()[0]])
