"""How a forward is run for a record: in eval mode, on plain kernels."""

from __future__ import annotations

import contextlib
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import compress
from typing import Any

import torch
from torch import nn

from secateur.attention import one_attention
from secateur.frameworks.huggingface import traceable_experts
from secateur.tensors import modules_of

_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@contextlib.contextmanager
def plain_forward(model: nn.Module, *, is_training: bool = False) -> Iterator[None]:
    """Eval mode, no gradients, no fused encoder path inside; afterwards each module holds what it held before.

    `nn.TransformerEncoder`'s fused eval path is one opaque operator; its plain path says the same in ATen.
    """
    modules = list({id(module): module for _, module in modules_of(model)}.values())
    states = [_state(module) for module in modules]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if any(module.training != is_training for module in modules):
        model.train(is_training)
    try:
        # out of inference mode, in which composite operators reach a dispatch mode whole
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            one_attention(),
            traceable_experts(modules),
            _plain_rnn(modules),
        ):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for state in states:
            _restore(*state)


_HOLDERS = {dict, list, set, OrderedDict}
_State = tuple[dict[str, Any], dict[str, Any], list[Any], list[tuple[Any, Any]]]


def _state(module: nn.Module) -> _State:
    """What a module holds, to be put back: its training flag, and what its code may keep from a first forward.

    That may be hooks, too: Transformers installs some at the first call, and remembers that it did.
    """
    attributes = vars(module)
    held = attributes.values()
    holders = list(compress(held, map(_HOLDERS.__contains__, map(type, held))))  # without a line of Python for each
    return attributes, attributes.copy(), holders, [(full, full.copy()) for full in filter(None, holders)]


def _restore(
    attributes: dict[str, Any], before: dict[str, Any], holders: list[Any], full: list[tuple[Any, Any]]
) -> None:
    attributes.clear()
    attributes.update(before)
    for held in filter(None, holders):
        held.clear()
    for held, content in full:
        held.clear()  # two attributes may hold one list
        held.extend(content) if type(held) is list else held.update(content)


def _plain_rnn(modules: Iterable[nn.Module]) -> contextlib.AbstractContextManager[None]:
    """oneDNN runs a whole recurrent layer as one opaque operator; without it the layer is matrix products and gates."""
    if any(isinstance(m, nn.RNNBase) for m in modules):
        return _without_onednn()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _without_onednn() -> Iterator[None]:
    # Not `torch.backends.mkldnn.flags`, which also sets what warns on machines without an Intel GPU.
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Fake tensors log a traceback for each operator that fails; our own error says it in a line."""
    before = _FAKE_LOG.disabled
    _FAKE_LOG.disabled = True
    try:
        yield
    finally:
        _FAKE_LOG.disabled = before
