"""A user's own operator: frozen at first, pruned with a five-line rule, or with one that an experiment found."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur.dims.probe import Derived, probe_rule, probe_rules
from secateur.errors import UnsupportedOpError


@torch.library.custom_op("mylib::squash", mutates_args=())
def squash(x: Tensor, scale: Tensor) -> Tensor:
    """x / (1 + |scale * x|), per element and channel."""
    return x / (1 + (scale * x).abs())


@squash.register_fake
def _(x: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mylib::share", mutates_args=())
def share(x: Tensor) -> Tensor:
    """Every channel over the sum of all: the last axis is mixed, the others are not."""
    return x / (1 + x.abs().sum(-1, keepdim=True))


@share.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("mylib::ramp", mutates_args=())
def ramp(x: Tensor) -> Tensor:
    """Channel c times c: each depends on itself alone, but not on its place among those left."""
    return x * torch.arange(x.shape[-1], dtype=x.dtype)


@ramp.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 16), nn.Linear(16, 3)
        self.scale = nn.Parameter(torch.rand(16))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(squash(self.up(x), self.scale))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def five_lines() -> Iterator[None]:
    @secateur.OP_RULES.register(torch.ops.mylib.squash.default)
    def squash_rule(op, x, scale):  # type: ignore[no-untyped-def]
        """out[…, c] = f(x[…, c], scale[c])"""
        op.role(scale, "scale")
        op.equate(x[-1], scale[0])
        op.out(*x)

    yield
    del secateur.OP_RULES[torch.ops.mylib.squash.default]


X = torch.randn(4, 6)


def test_without_a_rule_it_is_frozen_and_reported(net: nn.Module) -> None:
    graph = secateur.trace(net, X)
    assert graph.prunable == []
    assert "mylib.squash" in str(graph)
    assert "test_custom_operators.py" in graph.uncounted[0]


@pytest.mark.usefixtures("five_lines")
def test_five_lines_are_enough(net: nn.Module) -> None:
    plan = secateur.plan(net, X, secateur.Budget(width=0.5))
    small = secateur.apply(net, plan)
    assert small.get_parameter("scale").shape == (8,)
    assert secateur.verify(net, small, plan, X).is_ok


def test_an_experiment_finds_the_same_rule(net: nn.Module) -> None:
    with probe_rules(net, X) as found:
        assert [str(d) for d in found] == [
            "mylib.squash.default, by experiment: output 0 axis 0 = input 0 axis 0,"
            " output 0 axis 1 = input 0 axis 1 = input 1 axis 0"
        ]
        plan = secateur.plan(net, X, secateur.Budget(width=0.5))
        small = secateur.apply(net, plan)
    assert small.get_parameter("scale").shape == (8,)
    assert torch.ops.mylib.squash.default not in secateur.OP_RULES
    assert secateur.trace(net, X).prunable == []


def test_a_mixed_axis_is_frozen(net: nn.Module) -> None:
    derived = probe_rule(torch.ops.mylib.share.default, torch.zeros(4, 16))
    assert derived.outputs == ((((0, 0),), ()),)

    class Mixed(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.down(share(self.up(x)))

    with probe_rules(model := Mixed(), X):
        reasons = [g.frozen_reason or "" for g in secateur.trace(model, X).groups if g.name == "up features"]
    assert reasons == [] or all("by experiment" in reason for reason in reasons)
    with probe_rules(model, X):
        assert secateur.trace(model, X).prunable == []


def test_what_depends_on_its_place_is_frozen() -> None:
    assert probe_rule(torch.ops.mylib.ramp.default, torch.zeros(4, 16)).outputs == ((((0, 0),), ()),)


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (torch.ops.aten.relu.default, (torch.zeros(3, 4),)),
        (torch.ops.aten.softmax.int, (torch.zeros(3, 4), 1)),
        (torch.ops.aten.mm.default, (torch.zeros(4, 4), torch.zeros(4, 4))),
        (torch.ops.aten.t.default, (torch.zeros(4, 4),)),
        (torch.ops.aten.cumsum.default, (torch.zeros(3, 4), 1)),
        (torch.ops.aten.mul.Tensor, (torch.zeros(3, 4), torch.zeros(4))),
        (torch.ops.aten.cat.default, ([torch.zeros(3, 2), torch.zeros(3, 2)], 1)),
    ],
    ids=["relu", "softmax", "mm", "t", "cumsum", "mul", "cat"],
)
def test_known_operators(target: object, args: tuple[object, ...]) -> None:
    """What is found about operators whose truth is known."""
    expected: dict[str, object] = {
        "relu": ((((0, 0),), ((0, 1),)),),
        "softmax": ((((0, 0),), ()),),
        "mm": ((((0, 0),), ((1, 1),)),),
        "t": ((((0, 1),), ((0, 0),)),),
        "cumsum": ((((0, 0),), ()),),
        "mul": ((((0, 0),), ((0, 1), (1, 0))),),
        "cat": ((((0, 0), (1, 0)), ()),),
    }
    derived: Derived = probe_rule(target, *args)
    assert derived.outputs == expected[str(target).split(".")[1]]


def test_no_experiment_on_what_is_random_or_in_place() -> None:
    with pytest.raises(UnsupportedOpError, match="other numbers each time"):
        probe_rule(torch.ops.aten.bernoulli.p, torch.zeros(8, 8), 0.5)
    with pytest.raises(UnsupportedOpError, match="in place"):
        probe_rule(torch.ops.aten.relu_.default, torch.zeros(3))
