"""Laws of folded batch norms: outputs and gradients are those of the two operators, and nothing else is folded."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from .laws import networks
from .laws.settings import some
from .test_program import program_of


def stirred(model: nn.Module) -> nn.Module:
    """In float64, with batch norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for module in model.double().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for t in (module.weight, module.bias, module.running_mean):
                if t is not None:
                    t.data.copy_(torch.randn(t.shape, generator=generator))
            assert module.running_var is not None
            module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) + 0.5)
    return model


@some(30)
@given(networks.programs())
def test_a_folded_program_computes_what_the_model_does(network: networks.Program) -> None:
    model, inputs = networks.build(network)
    program = program_of(stirred(model), inputs)
    with torch.no_grad():
        plain, folded = (program.start(inputs).fork(folds=f).finish() for f in ({}, program.folds))
    for a, b in zip(folded, plain, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("convolution", "norm", "x"),
    [
        (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), torch.randn(2, 3, 6, 6)),
        (nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), torch.randn(2, 4, 6, 6)),
        (nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4, affine=False), torch.randn(2, 3, 6)),
        (nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4, eps=0.1), torch.randn(2, 3, 4, 4, 4)),
    ],
)
def test_gradients_reach_every_parameter_as_they_did(convolution: nn.Module, norm: nn.Module, x: Tensor) -> None:
    model = stirred(nn.Sequential(convolution, norm, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).eval())
    x = x.double()
    model(x)
    program = program_of(model, x)
    assert len(program.folds) == 1
    found = []
    for folds in ({}, program.folds):
        model.zero_grad()
        program.start(x).fork(folds=folds).finish()[0].square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


class Shared(nn.Module):
    """What the convolution gives is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y + self.norm(y)


@pytest.mark.parametrize(
    "model",
    [
        Shared(),
        nn.Sequential(nn.ConvTranspose2d(2, 2, 1), nn.BatchNorm2d(2)),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)),
        nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU(), nn.BatchNorm2d(2)),
    ],
    ids=["read twice", "transposed", "statistics of the batch", "not its reader"],
)
def test_what_is_not_one_convolution_is_left(model: nn.Module) -> None:
    assert program_of(model, torch.randn(2, 2, 4, 4)).folds == {}


@pytest.mark.parametrize("norms", [torch.bfloat16, torch.float32])
def test_half_precision_stays_what_it_was(norms: torch.dtype) -> None:
    model = stirred(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).bfloat16()
    model[1].to(norms)
    x = torch.randn(2, 3, 6, 6, dtype=torch.bfloat16)
    program = program_of(model, x)
    assert len(program.folds) == 1
    with torch.no_grad():
        plain, folded = (program.start(x).fork(folds=f).finish()[0] for f in ({}, program.folds))
    assert plain.dtype == folded.dtype == torch.bfloat16
    assert (plain - folded).norm() < 0.02 * plain.norm()
