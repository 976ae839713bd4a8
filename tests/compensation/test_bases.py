"""Coordinates along the principal axes of what a layer reads: laws of the turn, and that fits profit from it."""

import pytest
import torch
from torch import Tensor, nn

from secateur import Budget, apply, plan, trace
from secateur.compensation import CompensateConfig, ReconstructConfig, bases, compensate_
from secateur.compensation.bases import Basis
from secateur.compensation.moments import Moments
from secateur.compensation.readers import Reader, find_readers


class ByHand(nn.Module):
    """A product with a weight whose axes are (in, out)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


LAYERS = {
    "linear": (nn.Linear(6, 4), (8, 6)),
    "transposed": (ByHand(), (8, 6)),
    "convolution": (nn.Conv2d(3, 5, 3, padding=1, stride=2), (2, 3, 8, 8)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (2, 4, 8, 8)),
    "depthwise": (nn.Conv1d(4, 4, 3, groups=4), (2, 4, 9)),
    "half precision": (nn.Linear(6, 4, dtype=torch.bfloat16), (8, 6)),
    "double precision": (nn.Linear(6, 4, dtype=torch.float64), (8, 6)),
}


@pytest.fixture(params=list(LAYERS))
def layer(request: pytest.FixtureRequest) -> tuple[Reader, nn.Parameter, Tensor]:
    """A reader, its weight, and what it reads, (n, g, k)."""
    model, shape = LAYERS[request.param]
    weight = model.weight
    assert isinstance(weight, nn.Parameter)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(weight.dtype)
    (reader,) = find_readers(trace(model, x, is_fake=False).trace)[0]
    return reader, weight, reader.inputs(x)


def basis_of(reader: Reader, weight: Tensor, seen: Tensor) -> Basis:
    found = Basis.of(reader, Moments.of(seen, torch.zeros(len(seen), seen.shape[1], 1)), weight)
    assert found is not None
    return found


def test_a_weight_comes_back_from_its_coordinates(layer: tuple[Reader, nn.Parameter, Tensor]) -> None:
    reader, weight, seen = layer
    basis = basis_of(reader, weight, seen)
    back = basis.weight(basis.coordinates(weight), weight)
    assert (back.shape, back.dtype) == (weight.shape, weight.dtype)
    torch.testing.assert_close(back, weight.detach())


def test_what_the_layer_reads_is_uncorrelated_along_the_axes(layer: tuple[Reader, nn.Parameter, Tensor]) -> None:
    reader, weight, seen = layer
    along = seen.movedim(0, 1).double() @ basis_of(reader, weight, seen).axes.double()
    gram = along.mT @ along
    off = gram - torch.diag_embed(gram.diagonal(dim1=1, dim2=2))
    assert float(off.abs().max()) < 1e-5 * float(gram.abs().max())


def test_gradients_reach_the_coordinates(layer: tuple[Reader, nn.Parameter, Tensor]) -> None:
    """d loss / d coordinates = (d loss / d W) axes."""
    reader, weight, seen = layer
    basis = basis_of(reader, weight, seen)
    coordinates = basis.coordinates(weight).requires_grad_()
    pull = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).to(weight.dtype)
    (basis.weight(coordinates, weight) * pull).sum().backward()  # type: ignore[no-untyped-call]
    assert coordinates.grad is not None
    expected = (reader.matrix(pull) @ basis.axes.double()).to(coordinates.dtype)
    torch.testing.assert_close(coordinates.grad, expected)


def test_wide_layers_keep_their_own_coordinates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "MOST_INPUTS", 5)
    model, x = nn.Linear(6, 4), torch.ones(8, 6)
    (reader,) = find_readers(trace(model, x, is_fake=False).trace)[0]
    seen = reader.inputs(x)
    assert Basis.of(reader, Moments.of(seen, seen), model.weight) is None


def correlated(n: int) -> Tensor:
    """Inputs that are almost all alike: a common part, ten times as large as each one's own."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, 12, generator=generator) + 10 * torch.randn(n, 1, generator=generator)


def test_fits_get_further_along_the_axes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same passes over inputs that are correlated, in both coordinates."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 12), nn.Tanh(), nn.Linear(12, 3))
    x = correlated(512)
    made = plan(model, x, Budget(width=0.5))
    settings = ReconstructConfig(epochs=0, end_epochs=10, distance="mse")

    def error() -> float:
        small = apply(model, made)
        report = compensate_(model, small, made, x.split(32), CompensateConfig(reconstruct=settings))
        return report.segments[-1].after

    along_axes = error()
    monkeypatch.setattr(Basis, "of", classmethod(lambda *_: None))
    assert along_axes < 0.9 * error()
