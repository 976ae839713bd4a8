"""Layers written down from memory say what running them says, whatever was done to them."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from secateur.capture import capture
from secateur.errors import CaptureError

from .test_repeats import forgotten, said, unremembered  # noqa: F401  a fixture for every test


def pair(make: Callable[[], nn.Module]) -> nn.Sequential:
    """Two layers of a kind between two that differ, so that the second could be taken for the first."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), make(), make(), nn.Conv2d(4, 2, 1))


def _forward_of_its_own(net: nn.Sequential) -> None:
    net[2].forward = lambda x: x * 3


def _hook(net: nn.Sequential) -> None:
    net[2].register_forward_hook(lambda module, args, out: out + 1)


def _pre_hook(net: nn.Sequential) -> None:
    net[2].register_forward_pre_hook(lambda module, args: (args[0] * 2,))


def _masked(net: nn.Sequential) -> None:
    prune.l1_unstructured(net[2], "weight", 0.5)


def _parametrized(net: nn.Sequential) -> None:
    nn.utils.parametrizations.weight_norm(net[2])


def _swapped(net: nn.Sequential) -> None:
    bias = nn.Parameter(torch.ones(4))
    del net[2].weight, net[2].bias
    net[2].register_parameter("bias", bias)
    net[2].register_parameter("weight", nn.Parameter(torch.zeros(4)))


def _one_tensor(net: nn.Sequential) -> None:
    net[2].bias = net[2].weight


def _tied(net: nn.Sequential) -> None:
    net[2].weight = net[1].weight


def _other_settings(net: nn.Sequential) -> None:
    net[2].eps = 1


def _number_of_another_type(net: nn.Sequential) -> None:
    net[1].eps, net[2].eps = 1, 1.0


def _compiled(net: nn.Sequential) -> None:
    net[2]._compiled_call_impl = lambda x: x * 5


def _with_tensor(net: nn.Sequential) -> None:
    net[2].table = torch.ones(2)


CHANGES = [_forward_of_its_own, _hook, _pre_hook, _other_settings, _number_of_another_type, _compiled, _with_tensor]
CASES = [
    *((change, lambda: nn.BatchNorm2d(4)) for change in [*CHANGES, _swapped, _one_tensor, _tied]),
    *((change, lambda: nn.Conv2d(4, 4, 3, padding=1)) for change in (_masked, _parametrized, _hook, _tied)),
]


@pytest.mark.parametrize(("change", "make"), CASES, ids=lambda v: v.__name__.strip("_<>"))
def test_a_layer_that_was_changed_is_not_taken_for_one_that_was_not(change, make, monkeypatch) -> None:
    plain, x = pair(make), torch.zeros(1, 3, 6, 6)
    net = pair(make)
    change(net)
    expected = said(unremembered(net, x, monkeypatch))
    known = said(capture(plain, x))
    assert said(capture(net, x)) == expected
    assert said(capture(plain, x)) == known
    assert said(capture(net, x)) == expected


LAYERS = {
    "identity": lambda: nn.Identity(),
    "dropout": lambda: nn.Dropout(),
    "in place": lambda: nn.ReLU(inplace=True),
    "activation": lambda: nn.PReLU(4),
    "reflection": lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
    "same": lambda: nn.Conv2d(4, 4, 3, padding="same"),
    "groups": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True, track_running_stats=True),
    "plain norm": lambda: nn.BatchNorm2d(4, affine=False, track_running_stats=False),
    "pool": lambda: nn.AdaptiveAvgPool2d(3),
    "upsample": lambda: nn.Upsample(size=(6, 6)),
    "nested": lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("is_training", [False, True])
def test_a_layer_from_memory_says_what_running_says(name: str, is_training: bool, monkeypatch) -> None:
    net, x = pair(LAYERS[name]), torch.zeros(2, 3, 6, 6)
    monkeypatch.setattr("secateur.repeats._MOST", 0)
    expected = said(capture(net, x, is_training=is_training))
    monkeypatch.undo()
    for _ in range(3):
        assert said(capture(net, x, is_training=is_training)) == expected


class Embeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.linear = nn.Embedding(9, 4, padding_idx=0), nn.Linear(4, 4)
        self.loss = nn.MSELoss()
        self.attention = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.attention(self.linear(self.words(ids)))
        return x * self.loss(x, self.linear(x))


def test_layers_of_several_inputs_and_of_indices(monkeypatch) -> None:
    net, ids = Embeds(), torch.zeros(2, 3, dtype=torch.long)
    expected = said(unremembered(net, ids, monkeypatch))
    for _ in range(2):
        assert said(capture(net, ids)) == expected


def test_a_hook_on_all_modules_is_called(monkeypatch) -> None:
    net, x = pair(nn.ReLU), torch.zeros(1, 3, 6, 6)
    plain = said(capture(net, x))
    handle = nn.modules.module.register_module_forward_hook(
        lambda module, args, out: out * 2 if isinstance(module, nn.ReLU) else out
    )
    try:
        expected = said(unremembered(net, x, monkeypatch))
        assert said(capture(net, x)) == expected != plain
    finally:
        handle.remove()
    assert said(capture(net, x)) == plain


def test_modules_are_called_as_before_when_a_capture_has_ended() -> None:
    before = nn.Module._call_impl
    capture(pair(nn.ReLU), torch.zeros(1, 3, 6, 6))
    assert nn.Module._call_impl is before
    with pytest.raises(CaptureError):
        capture(pair(nn.ReLU), torch.zeros(1, 5, 6, 6))
    assert nn.Module._call_impl is before


def test_another_threads_modules_run_beside_a_capture() -> None:
    other, results = nn.Linear(2, 2), []

    class Starts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: results.append(other(torch.ones(1, 2))))
            thread.start()
            thread.join()
            return self.linear(x)

    capture(Starts(), torch.zeros(1, 2))
    torch.testing.assert_close(results[0], other(torch.ones(1, 2)))
