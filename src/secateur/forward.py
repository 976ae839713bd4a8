"""How a forward is run for a record: in eval mode, on plain kernels."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator

import torch
from torch import nn

from secateur.attention import one_attention
from secateur.frameworks.huggingface import traceable_experts

_FAKE_LOG = logging.getLogger("torch._subclasses.fake_tensor")


@contextlib.contextmanager
def plain_forward(model: nn.Module, *, is_training: bool = False) -> Iterator[None]:
    """Eval mode, no gradients, no fused encoder path inside; afterwards each module holds what it held before.

    `nn.TransformerEncoder`'s fused eval path is one opaque operator; its plain path says the same in ATen.
    """
    modules = list(model.modules())
    states = [_State(module) for module in modules]
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
            state.restore()


_HOOKS = frozenset(vars(nn.Module())) - {"training", "_parameters", "_buffers", "_modules"}
"""What torch keeps in every module and no forward writes to."""


class _State:
    """What a module holds, to be put back: its training flag, and what its code may keep from a first forward."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.attributes = dict(vars(module))
        own = (held for name, held in self.attributes.items() if name not in _HOOKS)
        self.contents = [(held, held.copy()) for held in own if type(held) in (dict, list)]

    def restore(self) -> None:
        vars(self.module).clear()
        vars(self.module).update(self.attributes)
        for held, content in self.contents:
            held.clear()
            held.update(content) if isinstance(held, dict) else held.extend(content)


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
