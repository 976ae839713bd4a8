"""Layers as matrices: weights and inputs are laid out alike, and what is no layer is named."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from secateur.coding import codable
from secateur.layers import Layer, layers_of

CASES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 4), (3, 5, 6)),
    "linear of one row": (nn.Linear(6, 4), (6,)),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv2d": (nn.Conv2d(3, 5, (3, 2), stride=(1, 2), padding=(2, 1), dilation=(2, 1)), (2, 3, 8, 7)),
    "conv2d without a batch": (nn.Conv2d(3, 5, 3), (3, 8, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 8, 3, padding=1, groups=4), (2, 4, 5, 5)),
    "same": (nn.Conv2d(3, 5, 4, padding="same"), (2, 3, 6, 6)),
    "circular": (nn.Conv2d(3, 5, 3, padding=1, padding_mode="circular"), (2, 3, 6, 6)),
    "conv3d": (nn.Conv3d(2, 3, 2, padding=1), (2, 2, 4, 3, 3)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_its_rows_times_its_matrix(name: str) -> None:
    torch.manual_seed(0)
    module, shape = CASES[name]
    layer, x = Layer("weight", module), torch.randn(shape)
    y: Tensor = module(x)
    matrix = layer.matrix(layer.weight)
    found = torch.einsum("ngk,gok->ngo", layer.rows(x), matrix).flatten(1) + module.bias
    channel = y.dim() - 1 if isinstance(module, nn.Linear) else y.dim() - 1 - len(module.kernel_size)
    torch.testing.assert_close(found, y.movedim(channel, -1).reshape(found.shape))
    assert torch.equal(layer.tensor(matrix), layer.weight)
    assert matrix.shape[-1] % layer.n_inputs == 0


def test_columns_that_lie_side_by_side_are_channels_at_one_position() -> None:
    conv = nn.Conv2d(4, 1, 2)
    places = torch.arange(16.0).view(1, 4, 2, 2)  # channel * 4 + position
    assert Layer("weight", conv).matrix(places)[0, 0, :4].tolist() == [0, 4, 8, 12]


def test_gpt2s_layers_are_linear() -> None:
    transformers = pytest.importorskip("transformers.pytorch_utils")
    module = transformers.Conv1D(4, 6)
    (layer,) = layers_of(module, ["weight"])[0].values()
    x = torch.randn(3, 6)
    torch.testing.assert_close((layer.rows(x)[:, 0] @ layer.matrix(layer.weight)[0].T) + module.bias, module(x))
    assert torch.equal(layer.tensor(layer.matrix(layer.weight)), layer.weight)


def test_what_is_no_layer_is_named() -> None:
    model = nn.ModuleDict(
        {"table": nn.Embedding(4, 3), "up": nn.ConvTranspose1d(2, 2, 2), "head": nn.Linear(3, 2), "fc": nn.Linear(3, 3)}
    )
    found, skipped = layers_of(model, codable(model)[0], ignore=("he*",))
    assert list(found) == ["fc.weight"]
    assert dict(skipped) == {
        "table.weight": "Embedding is no linear layer or convolution",
        "up.weight": "ConvTranspose1d is no linear layer or convolution",
        "head.weight": "ignored",
    }
