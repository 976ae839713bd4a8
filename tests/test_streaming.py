"""Calibration in stages: layers read what they read in the network's own forward, whatever became of those before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.coding import codable
from secateur.layers import gram, layers_of, sum_over_inputs
from secateur.streaming import find_blocks, stages


class Residual(nn.Module):
    """A block that writes into what it reads and hands a tuple on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Any, *, scale: Tensor) -> tuple[Tensor, None]:
        return x.add_(self.down(self.up(x).relu()) * scale), None


class Net(nn.Module):
    """Blocks with an argument of their own each, between layers that are in none."""

    def __init__(self, skips: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
        self.blocks = nn.ModuleList(Residual(4) for _ in range(3))
        self.pair = nn.Sequential(nn.ReLU(), nn.ReLU())
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        x = start = self.stem(x)
        start = start.clone()
        for i, block in enumerate(self.blocks):
            if self.skips and i == 2:
                x = x + start
            x = self.pair(block(x, scale=torch.tensor(1.0 + i))[0])
        return self.head(x)


def net(**settings: bool) -> Net:
    torch.manual_seed(0)
    return Net(**settings).eval()


BATCHES = list(torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0)))


def test_blocks_are_found_by_what_they_hold() -> None:
    assert find_blocks(net(), BATCHES[0]) == ["blocks.0", "blocks.1", "blocks.2"]
    assert find_blocks(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), BATCHES[0]) == []


def test_blocks_that_read_more_than_the_one_before_gives_are_no_chain() -> None:
    assert find_blocks(net(skips=True), BATCHES[0]) == ["blocks.0", "blocks.1", "blocks.2"]  # it skips from the stem

    class Skipping(Net):
        def forward(self, x: Tensor) -> Tensor:
            first = self.blocks[0](self.stem(x), scale=torch.tensor(1.0))[0].clone()
            second = self.blocks[1](first.clone(), scale=torch.tensor(1.0))[0]
            return self.head(self.blocks[2](second + first, scale=torch.tensor(1.0))[0])

    torch.manual_seed(0)
    assert find_blocks(Skipping().eval(), BATCHES[0]) == []


def test_blocks_that_run_in_another_order_are_no_chain() -> None:
    class Backwards(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for block in reversed(self.blocks):
                x = block(x, scale=torch.tensor(1.0))[0]
            return self.head(x)

    assert find_blocks(Backwards().eval(), BATCHES[0]) == []


@pytest.mark.parametrize("is_streamed", [True, False])
def test_layers_read_what_they_read_in_a_forward(is_streamed: bool) -> None:
    model = net()
    layers, _ = layers_of(model, codable(model)[0])
    expected = sum_over_inputs(layers, lambda: [model(x) for x in BATCHES], gram)
    blocks = find_blocks(model, BATCHES[0]) if is_streamed else []
    found: dict[str, Tensor] = {}
    names = []
    for stage in stages(model, BATCHES, blocks):
        left = {key: layer for key, layer in layers.items() if key not in found}
        found |= sum_over_inputs(left, stage.run, gram) if stage.fqn or not blocks else {}
        if not stage.fqn:
            outside = {key: layer for key, layer in left.items() if not key.startswith("blocks")}
            found |= sum_over_inputs(outside, stage.run, gram)
        names.append(stage.fqn)
    assert names == ["", *blocks, ""] if blocks else [""]
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key])
    assert "forward" not in vars(model.blocks[0])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_later_blocks_see_what_earlier_ones_became() -> None:
    model, changed = net(), net()
    for module in (changed.blocks[0].down, changed.blocks[1].up):
        module.weight.data.zero_()
    layers, _ = layers_of(model, codable(model)[0])
    others, _ = layers_of(changed, codable(changed)[0])
    expected = sum_over_inputs(others, lambda: [changed(x) for x in BATCHES], gram)
    for stage in stages(model, BATCHES, ["blocks.0", "blocks.1", "blocks.2"]):
        here = {key: layer for key, layer in layers.items() if stage.fqn and key.startswith(stage.fqn)}
        for key, found in sum_over_inputs(here, stage.run, gram).items():
            if not key.startswith("blocks.1.down"):  # in its own block the change is not made yet
                torch.testing.assert_close(found, expected[key])
        if stage.fqn == "blocks.0":
            model.blocks[0].down.weight.data.zero_()
        if stage.fqn == "blocks.1":
            model.blocks[1].up.weight.data.zero_()


def test_an_error_in_the_forward_leaves_the_model_as_it_was() -> None:
    model = net()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        list(stages(model, [torch.zeros(2, 7)], ["blocks.0", "blocks.1"]))
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in vars(m) for m in model.modules())
