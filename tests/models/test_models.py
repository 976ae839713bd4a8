"""Builtin networks: shapes, names and sizes that published weights and readers depend on."""

from __future__ import annotations

import pytest
import torch

from secateur.errors import ConfigError, RegistryError
from secateur.models import MODELS, CifarResNet, cifar_resnet20, digits_cnn, mlp
from secateur.models.cifar_resnet import ZeroPadShortcut

CASES = {
    "digits_cnn": ({}, (1, 8, 8)),
    "cifar_resnet20": ({}, (3, 32, 32)),
    "cifar_resnet56": ({}, (3, 32, 32)),
    "mlp": ({"in_features": 7}, (7,)),
    "klda": ({"in_features": 7}, (7,)),
    "text_cnn": ({"n_words": 9}, (6,)),
}


def samples(name, n, shape):
    if name == "text_cnn":
        return torch.arange(n * shape[0]).reshape(n, *shape) % 9
    return torch.randn(n, *shape)


def test_every_model_has_a_case():
    assert set(MODELS) == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gives_logits_and_every_parameter_learns(name):
    kwargs, shape = CASES[name]
    torch.manual_seed(0)
    model = MODELS[name](n_classes=5, **kwargs)
    out = model(samples(name, 4, shape))
    assert out.shape == (4, 5)
    out.square().sum().backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


@pytest.mark.parametrize("name", CASES)
def test_same_seed_same_weights(name):
    kwargs, _ = CASES[name]
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(MODELS[name](**kwargs).state_dict())
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)


def test_unknown_model_names_the_known_ones():
    with pytest.raises(RegistryError, match="Known: cifar_resnet20, cifar_resnet56, digits_cnn, klda, mlp, text_cnn"):
        MODELS["resnet9000"]


def test_resnet_has_the_names_of_the_published_weights():
    keys = list(cifar_resnet20().state_dict())
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["conv1.weight", *(f"bn1.{k}" for k in norm)]
    for stage in (1, 2, 3):
        for block in range(3):
            for i in (1, 2):
                fqn = f"layer{stage}.{block}"
                expected += [f"{fqn}.conv{i}.weight", *(f"{fqn}.bn{i}.{k}" for k in norm)]
    assert keys == [*expected, "linear.weight", "linear.bias"]


def test_shortcut_pads_zeros_around_subsampled_channels():
    x = torch.arange(32.0).reshape(1, 2, 4, 4) + 1
    out = ZeroPadShortcut(1)(x)
    assert out.shape == (1, 4, 2, 2)
    assert not out[:, [0, 3]].any()
    assert out[0, 1].tolist() == [[1.0, 3.0], [9.0, 11.0]]


@pytest.mark.parametrize("depth", [0, 2, 21])
def test_resnet_refuses_impossible_depths(depth):
    with pytest.raises(ConfigError, match=f"depth={depth} is not 6 n"):
        CifarResNet(depth)


def test_widths_must_be_positive():
    with pytest.raises(ConfigError, match="width=0"):
        digits_cnn(width=0)
    with pytest.raises(ConfigError, match="every width must be at least 1"):
        mlp(3, hidden=(4, 0))


def test_mlp_without_hidden_layers_is_linear():
    model = mlp(3, hidden=(), n_classes=2)
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(model(x) + model(y), model(x + y) + model(torch.zeros(2, 3)))
