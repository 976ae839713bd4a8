"""Model classes that once failed, each in a tiny version of what it failed on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur
from secateur import Budget, PruneConfig
from secateur.dims.algebra import count
from secateur.probing import probing_counts
from secateur.repair import repair


class LowFormerAttention(nn.Module):
    """Values wider than keys: torch has a kernel for that, and another one once they are equally wide."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(6, 32)
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (2, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def test_attention_is_recorded_alike_for_every_width() -> None:
    torch.manual_seed(0)
    model, x = LowFormerAttention(), torch.randn(2, 5, 6)
    plan = secateur.plan(model, x, Budget(width=0.5), PruneConfig(ignore=("q", "k")))
    small = secateur.apply(model, plan)
    assert small.v.out_features == 16


def kept(model: nn.Module, x: Tensor) -> dict[str, float]:
    """The fraction that a plan of half the widths keeps of each group, once the result is proven."""
    torch.manual_seed(0)
    plan = secateur.plan(model, x, Budget(width=0.5), PruneConfig(criterion="random"))
    secateur.apply(model, plan, inputs=x)
    return {g.name: len(g.keep) / g.size for g in plan.groups}


class CoatAggregate(nn.Module):
    """Class tokens of three streams, averaged by a convolution whose positions are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.streams = nn.ModuleList([nn.Linear(6, 8) for _ in range(3)])
        self.aggregate, self.head = nn.Conv1d(3, 1, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.aggregate(torch.stack([f(x) for f in self.streams], dim=1)).squeeze(1))


def test_a_kernel_of_one_element_leaves_positions_alone() -> None:
    assert kept(CoatAggregate(), torch.randn(2, 6)) == {"streams.0 embed": 0.5}


class CoatAttention(nn.Module):
    """`C // self.num_heads`, where the stream is the output and keeps its width."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 2
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.up, self.down = nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads).permute(2, 0, 3, 1, 4)
        x = x + self.proj((q @ (k.transpose(-1, -2) @ v)).transpose(1, 2).reshape(b, n, c))
        return x + self.down(torch.relu(self.up(x)))


def test_a_quotient_of_what_keeps_its_size_keeps_its_size() -> None:
    assert kept(CoatAttention(), torch.randn(2, 5, 12)) == {"up features": 0.5}


class RaftUpdate(nn.Module):
    """Knows how wide its state is."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_state_size = 10
        self.gate = nn.Linear(10 + 6, 10)

    def forward(self, state: Tensor, context: Tensor) -> Tensor:
        return torch.tanh(self.gate(torch.cat([state, context], dim=-1)))


class Raft(nn.Module):
    """Splits its encoder's output by a number that a module inside holds."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.update, self.head = nn.Linear(6, 16), RaftUpdate(), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        size = self.update.hidden_state_size
        state, context = torch.split(features, [size, features.shape[-1] - size], dim=-1)
        return self.head(self.update(torch.tanh(state), torch.relu(context)))


def test_a_number_may_be_in_a_module_inside() -> None:
    assert set(kept(Raft(), torch.randn(2, 6)).values()) == {0.5}


class Dinov3Rope(nn.Module):
    """Asserts the width of its heads in a function that no operator of its own precedes, and says no number."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 48), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, 8)).permute(2, 0, 3, 1, 4)
        assert len({q.shape[-1], k.shape[-1], v.shape[-1], 8}) == 1
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


class Dinov3(nn.Module):
    """Blocks with such attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.attention = nn.ModuleList([Dinov3Rope() for _ in range(2)])
        self.mlp = nn.ModuleList([nn.Linear(12, 20), nn.Linear(20, 12)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.attention:
            x = x + block(x)
        return self.head(x + self.mlp[1](torch.relu(self.mlp[0](x))))


def test_what_an_assertion_without_a_number_guards_is_found() -> None:
    fractions = kept(Dinov3(), torch.randn(2, 5, 6))
    assert fractions == {
        "stem embed": 0.5, "attention.0.qkv heads": 0.5, "attention.1.qkv heads": 0.5, "mlp.0 features": 0.5,
    }  # fmt: skip


class DeepseekHeads(nn.Module):
    """Heads and rotary dims of one size, which the first probing widths make equal again."""

    def __init__(self) -> None:
        super().__init__()
        self.rope, self.parts, self.heads = 4, 5, 4
        self.up, self.scale, self.down = nn.Linear(6, 80), nn.Parameter(torch.randn(4, 5, 4)), nn.Linear(80, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x).view(len(x), self.heads, self.parts, self.rope)
        return self.down(torch.relu(x * self.scale).flatten(1))


def test_dims_that_are_probed_alike_are_told_apart() -> None:
    model, x = DeepseekHeads(), torch.randn(2, 6)
    graph = secateur.trace(model, x)
    inner = {b.path: b.dim for b in repair(model, x, graph).bindings}
    heads, parts, rope = graph.solution.axes(graph.trace.tensors["scale"])
    assert (inner["heads"], inner["parts"], inner["rope"]) == (heads, parts, rope)
    counts = probing_counts(graph)
    assert count(heads, counts) == count(rope, counts)


class HeadsOfFive(nn.Module):
    """20 channels in 4 heads: at the first probing widths, 15 // 4 is the 3 that heads of 5 are probed with."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.embed, self.query = nn.Linear(3, 20), nn.Linear(20, 20)
        self.scale = nn.Parameter(torch.ones(4, 1, 1))
        self.out, self.last = nn.Linear(20, 20), nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        n, length, channels = y.shape
        q = self.query(y).view(n, length, self.heads, channels // self.heads).transpose(1, 2)
        return self.last(self.out((q * self.scale).transpose(1, 2).reshape(n, length, -1)))


def test_what_one_set_of_widths_hides_by_chance_another_shows() -> None:
    torch.manual_seed(0)
    model, x = HeadsOfFive(), torch.randn(2, 10, 3)
    plan = secateur.plan(model, x, Budget(width=0.5), PruneConfig(criterion="random"))
    assert not [why for _, why in plan.skipped if why.startswith("no number or equation")]
    assert plan.cost_after.params < 0.3 * plan.cost_before.params
    assert secateur.verify(model, secateur.apply(model, plan), plan, x).is_ok
