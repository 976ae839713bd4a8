"""Batch-norm statistics: what measuring them again changes, and what it leaves as it is."""

import copy

import pytest
import torch
from torch import Tensor, nn

from secateur import Budget, apply, plan
from secateur.compensation import CompensateConfig, compensate_, rebase_norms_, reestimate_norms_


def network(**norm: bool) -> nn.Module:
    """Two convolutions with norms whose statistics are not the data's."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, **norm), nn.ReLU()),
        *(nn.Conv2d(8, 6, 3, bias=False), nn.BatchNorm2d(6, **norm), nn.Flatten(), nn.Linear(6 * 16, 4)),
    )
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d) and m.running_mean is not None and m.running_var is not None:
            m.running_mean.normal_()
            m.running_var.uniform_(0.3, 2)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    return net.eval()


@pytest.fixture
def images() -> Tensor:
    return 1 + 2 * torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def test_rebased_norms_compute_what_they_computed(images: Tensor) -> None:
    net = network()
    with torch.no_grad():
        before = net(images)
        assert rebase_norms_(net, images.split(16)) == 2
        torch.testing.assert_close(net(images), before, rtol=1e-4, atol=1e-4)


def test_rebased_norms_hold_the_statistics_of_what_they_read(images: Tensor) -> None:
    net = network()
    rebase_norms_(net, images.split(16))
    with torch.no_grad():
        read = net[0](images)
    torch.testing.assert_close(net[1].running_mean, read.mean((0, 2, 3)))
    torch.testing.assert_close(net[1].running_var, read.var((0, 2, 3), correction=0))


def test_training_goes_on_from_what_a_rebased_network_computes(images: Tensor) -> None:
    net = network()
    with torch.no_grad():
        expected = net(images)
        off = copy.deepcopy(net).train()(images) - expected
        rebase_norms_(net, [images])
        torch.testing.assert_close(net.train()(images), expected, rtol=1e-3, atol=1e-3)
    assert float(off.abs().max()) > 0.1  # without it the first step would have been another network's


def test_compensation_leaves_norms_that_training_can_go_on_from(images: Tensor) -> None:
    net = network()
    made = plan(net, images, Budget(width=0.5))
    small = apply(net, made)
    compensate_(net, small, made, images.split(16), CompensateConfig(reconstruct=None))
    with torch.no_grad():
        in_eval = small(images)
        torch.testing.assert_close(small.train()(images), in_eval, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("norm", [{"affine": False}, {"track_running_stats": False}])
def test_norms_that_could_not_make_up_stay(norm: dict[str, bool], images: Tensor) -> None:
    net = network(**norm)
    before = copy.deepcopy(net.state_dict())
    assert rebase_norms_(net, [images]) == 0
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())


def test_norms_that_share_a_scale_stay(images: Tensor) -> None:
    net = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3)).eval()
    net[1].weight = net[0].weight
    assert rebase_norms_(net, [images]) == 1


def test_a_norm_that_runs_twice_keeps_its_function(images: Tensor) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.norm(x).relu())

    net = Twice().eval()
    with torch.no_grad():
        before = net(images)
        assert rebase_norms_(net, [images]) == 1
        torch.testing.assert_close(net(images), before)


def test_reestimated_statistics_are_the_averages_of_the_batches(images: Tensor) -> None:
    net = network()
    assert reestimate_norms_(net, images.split(16)) == 2
    assert not any(m.training for m in net.modules())
    with torch.no_grad():
        read = [net[0](part) for part in images.split(16)]
    torch.testing.assert_close(net[1].running_mean, torch.stack([r.mean((0, 2, 3)) for r in read]).mean(0))
    torch.testing.assert_close(net[1].running_var, torch.stack([r.var((0, 2, 3)) for r in read]).mean(0))
    assert net[1].momentum == 0.1
