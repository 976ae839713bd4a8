"""What is measured on data, against running the model by hand, sample by sample and unit by unit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import secateur
from secateur.criteria import (
    CRITERIA,
    collect_activity,
    collect_divergences,
    collect_gates,
    collect_model_gates,
    collect_products,
    collect_ranks,
    collect_squared_gradients,
    cross_entropy,
    make_criterion,
    measure,
    needs_of,
)
from secateur.criteria.gradients import logits_of
from secateur.errors import CaptureError, ConfigError


class Images(nn.Module):
    """In-place ReLUs, a residual, a depthwise convolution that passes its channels on, a gate, a tensor read twice."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.each = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.back = nn.Conv2d(8, 6, 1)
        self.squeeze = nn.Linear(6, 4)
        self.excite = nn.Linear(4, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu_(self.stem(x))
        inside = self.norm(self.inner(x)).relu()
        x = x + self.back(torch.relu_(self.each(inside)))
        x = x * self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()[:, :, None, None]
        return self.head(x.relu().mean((2, 3)))


class Tokens(nn.Module):
    """Sequence first; heads, their width, a gated unit, an embedding that all samples read."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 12)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.up, self.down = nn.Linear(8, 14), nn.Linear(7, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, ids):
        x = self.encoder(self.embed(ids).transpose(0, 1))
        gate, value = self.up(x).chunk(2, -1)
        return self.head((x + self.down(gate.sigmoid() * value)).mean(0))


def build(kind, n=7):
    torch.manual_seed(0)
    model = kind().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(n, 3, 6, 5) if kind is Images else torch.randint(11, (n, 4))
    return model, x, torch.randint(5, (n,))


def groups_of(model, x):
    return secateur.trace(model, x[:1]).prunable


def batched(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def own_gradients(model, x, y):
    """Each sample's own gradients, by a forward and a backward of its own."""
    found = []
    for n in range(len(x)):
        model.zero_grad()
        cross_entropy(model(x[n : n + 1]), y[n : n + 1]).backward()
        found.append({key: p.grad.clone() for key, p in model.named_parameters()})
    model.zero_grad(set_to_none=True)
    return found


def weight_gates(model, group, gradients, passes_on=()):
    """gamma = sum over the weights that read a unit of weight times gradient."""
    rows = 0
    for m in group.members:
        if m.role == "reader" and m.key not in passes_on:
            w = model.get_parameter(m.key).detach()
            rows = rows + (m.view(w) * m.view(gradients[m.key])).reshape(group.size, -1).sum(1)
    return rows


@pytest.mark.parametrize("kind", [Images, Tokens])
@pytest.mark.parametrize("sizes", [[7], [1, 4, 2]], ids=str)
def test_gates_are_weight_times_gradient_of_the_readers_sample_by_sample(kind, sizes):
    """For every group whose readers are weights; `each` is depthwise, so its channels are read by what follows."""
    model, x, y = build(kind)
    gradients = own_gradients(model, x, y)
    groups = [g for g in groups_of(model, x) if g.kind != "head_dim"]
    found = collect_gates(model, groups, batched(x, y, sizes))
    assert {g.name for g in groups} == set(found)
    for group in groups:
        slow = torch.stack([weight_gates(model, group, one, ("each.weight",)) for one in gradients])
        torch.testing.assert_close(found[group.name], slow, rtol=1e-3, atol=1e-6)


def test_gates_of_a_width_that_queries_and_keys_share():
    """The width of heads is read where queries meet keys, and where values meet the output's weight: gate both."""
    model, x, y = build(Tokens)
    (group,) = [g for g in groups_of(model, x) if g.kind == "head_dim"]
    found = collect_gates(model, [group], [(x, y)])[group.name].mean(0)
    rows = torch.arange(24).reshape(3, 2, group.size)
    for unit in range(group.size):

        def loss(step, unit=unit):
            moved = copy.deepcopy(model).double()
            with torch.no_grad():
                for part in (0, 2):  # queries (keys are what is read), and values
                    at = rows[part, :, unit]
                    moved.encoder.layers[0].self_attn.in_proj_weight[at] *= 1 + step
                    moved.encoder.layers[0].self_attn.in_proj_bias[at] *= 1 + step
                return cross_entropy(moved(x), y).item()

        assert found[unit].item() == pytest.approx((loss(1e-6) - loss(-1e-6)) / 2e-6, abs=1e-6)


def test_what_all_samples_share_is_split_evenly():
    """A table without an axis of samples: the sum over samples is exact, and every sample has the same part of it."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.randn(5, 3))
            self.up, self.down, self.head = nn.Linear(3, 4), nn.Linear(4, 6), nn.Linear(6, 5)

        def forward(self, x):
            return self.head((x + self.down(self.up(self.table).relu())).mean(1).tanh())

    torch.manual_seed(0)
    model, x, y = Shared().eval(), torch.randn(7, 5, 6), torch.randint(5, (7,))
    (group,) = [g for g in groups_of(model, x) if g.size == 4]
    found = collect_gates(model, [group], [(x, y)])[group.name]
    slow = sum(weight_gates(model, group, one) for one in own_gradients(model, x, y))
    torch.testing.assert_close(found.sum(0), slow, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found, found[:1].expand(7, 4))


def test_measuring_leaves_the_model_as_it_was():
    model, x, y = build(Images)
    model.train()
    model.norm.eval()
    model.stem.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    measure(model, groups_of(model, x), {need for c in CRITERIA.values() for need in c.needs}, [(x, y)])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert (model.training, model.norm.training, model.head.training) == (True, False, True)
    assert not model.stem.weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


def reads_of_images(model, x):
    """What is read of each group of `Images`, all values of each unit: {size: (size, values)}."""
    with torch.no_grad():
        stem = model.stem(x).relu()
        depthwise = model.each(model.norm(model.inner(stem)).relu()).relu()
        stream = stem + model.back(depthwise)
        pooled = stream.mean((2, 3))
        squeezed = model.squeeze(pooled).relu()
        out = (stream * model.excite(squeezed).sigmoid()[:, :, None, None]).relu().mean((2, 3))
    flat = [t.movedim(1, 0).flatten(1) for t in (stem, pooled, out)]
    return {6: torch.cat(flat, 1), 8: depthwise.movedim(1, 0).flatten(1), 4: squeezed.T}, {6: stem, 8: depthwise}


@pytest.mark.parametrize("sizes", [[7], [1, 4, 2]], ids=str)
def test_activity_is_that_of_all_values_that_are_read(sizes):
    model, x, y = build(Images)
    groups = groups_of(model, x)
    values, _ = reads_of_images(model, x)
    found = collect_activity(model, groups, batched(x, y, sizes))
    products = collect_products(model, groups, batched(x, y, sizes))
    for group in groups:
        rows = values[group.size]
        torch.testing.assert_close(found[group.name].mean_abs, rows.abs().mean(1))
        torch.testing.assert_close(found[group.name].nonzero, (rows != 0).float().mean(1))
        torch.testing.assert_close(found[group.name].rms, rows.square().mean(1).sqrt())
        torch.testing.assert_close(products[group.name].float(), rows @ rows.T)


def test_ranks_are_those_of_the_maps_of_every_sample():
    model, x, _ = build(Images)
    groups = groups_of(model, x)
    _, maps = reads_of_images(model, x)
    found = collect_ranks(model, groups, [x[:1], x[1:]])
    assert {g.size for g in groups if g.name in found} == set(maps)  # what follows the pooling has no maps
    for group in groups:
        if group.size in maps:
            slow = [[torch.linalg.matrix_rank(one) / 5 for one in sample] for sample in maps[group.size]]
            torch.testing.assert_close(found[group.name], torch.tensor(slow).mean(0))


def test_heads_are_measured_head_by_head():
    model, x, _ = build(Tokens)
    (group,) = [g for g in groups_of(model, x) if g.kind == "heads"]
    seen = []
    attention = model.encoder.layers[0].self_attn
    with torch.no_grad():
        h = model.embed(x).transpose(0, 1)  # (T, B, C)
        q, k, v = (
            (h @ w.T + b).unflatten(-1, (2, 4)).permute(1, 2, 0, 3)
            for w, b in zip(attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3), strict=True)
        )
        seen = functional.scaled_dot_product_attention(q, k, v)  # (B, heads, T, width)
    found = collect_activity(model, [group], [x])[group.name]
    torch.testing.assert_close(found.mean_abs, seen.abs().mean((0, 2, 3)))
    ranks = [[torch.linalg.matrix_rank(head) / 4 for head in sample] for sample in seen]
    torch.testing.assert_close(collect_ranks(model, [group], [x])[group.name], torch.tensor(ranks).mean(0))


@pytest.mark.parametrize("samples_per_step", [1, 3])
def test_squared_gradients_are_those_of_each_step(samples_per_step):
    model, x, y = build(Images)
    found = collect_squared_gradients(model, batched(x, y, [5, 2]), samples_per_step=samples_per_step)
    own = own_gradients(model, x, y)
    steps = [[0], [1], [2], [3], [4], [5], [6]] if samples_per_step == 1 else [[0, 1, 2], [3, 4], [5, 6]]
    for key, value in found.items():
        slow = sum(sum(own[n][key] for n in step).square() for step in steps) / 7
        torch.testing.assert_close(value, slow, rtol=1e-3, atol=1e-7)


class Normed(nn.Module):
    """A residual stream with a norm over it, and a width inside."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.up, self.down, self.head = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


def test_divergence_is_that_of_the_model_without_the_unit():
    """Against models of one unit less, made by hand."""
    torch.manual_seed(0)
    model, x = Normed().eval(), torch.randn(9, 4)
    groups = groups_of(model, x)
    found = collect_divergences(model, groups, [x[:4], x[4:]])
    with torch.no_grad():
        full = model(x).double().log_softmax(1)
    for group in groups:
        for unit in range(group.size):
            keep = [c for c in range(group.size) if c != unit]
            less = copy.deepcopy(model)
            for m in group.members:
                parameter = less.get_parameter(m.key)
                parameter.data = parameter.data.index_select(m.axis, torch.tensor(keep))
            less.norm.normalized_shape = tuple(less.norm.weight.shape)
            with torch.no_grad():
                without = less(x).double().log_softmax(1)
            slow = (full.exp() * (full - without)).sum(1).mean()
            assert found[group.name][unit].item() == pytest.approx(slow.item(), rel=1e-4, abs=1e-7)


def test_divergences_of_tokens_add_up():
    """Six predictions per sample: their divergences add up."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 4)), torch.randn(5, 6, 3)
    flat, whole = (collect_divergences(model, groups_of(model, x), [data]) for data in (x.flatten(0, 1), x))
    torch.testing.assert_close(next(iter(whole.values())), 6 * next(iter(flat.values())))


def test_model_gates_are_the_second_order_of_the_divergence():
    """Scaling unit c by 1 - s gives KL = s^2 / 2 * Fisher information + third order; the draws average to it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    x = torch.randn(1, 3).double()
    (group,) = groups_of(model, x)
    gates = collect_model_gates(model, [group], [x.expand(20_000, 3)])[group.name]
    full = model(x).log_softmax(1)
    for unit in range(4):

        def divergence(step, unit=unit):
            moved = copy.deepcopy(model)
            moved[2].weight.data[:, unit] *= 1 - step
            return (full.exp() * (full - moved(x).log_softmax(1))).sum().item()

        information = (divergence(1e-3) + divergence(-1e-3)) / 1e-6
        assert gates[:, unit].square().mean().item() == pytest.approx(information, rel=0.06, abs=1e-4)


def test_draws_follow_the_generator_and_leave_it_alone():
    model, x, _ = build(Images)
    groups, generator = groups_of(model, x), torch.Generator().manual_seed(3)
    state = generator.get_state()
    one, same, other = (
        collect_model_gates(model, groups, [x], g) for g in (generator, generator, torch.Generator().manual_seed(4))
    )
    assert torch.equal(generator.get_state(), state)
    for name, gates in one.items():
        assert torch.equal(gates, same[name])
    assert any(not torch.equal(gates, other[name]) for name, gates in one.items())


@pytest.mark.parametrize("name", sorted(CRITERIA))
def test_a_plan_by_every_criterion(name):
    model, x, y = build(Images, n=12)
    is_labelled = needs_of(make_criterion(name)) & {"gradients", "squared_gradients", "gates"}
    data = iter(batched(x, y, [8, 4]) if is_labelled else x.split(8))  # can be read only once
    budget, config = secateur.Budget(macs=0.7), secateur.PruneConfig(criterion=name)
    made = secateur.plan(model, x[:1], budget, config, data=data)
    assert made.cost_after.macs <= 0.7 * made.cost_before.macs
    assert secateur.apply(model, made, inputs=x[:2])(x).shape == (12, 5)


@pytest.mark.parametrize("name", ["fisher", "taylor"])
def test_labels_are_asked_for(name):
    model, x, _ = build(Images)
    with pytest.raises(ConfigError, match=f"Criterion '{name}' needs labelled data"):
        secateur.plan(model, x, secateur.Budget(macs=0.7), secateur.PruneConfig(criterion=name))
    with pytest.raises(ConfigError, match="Batch 0 has no labels: it is Tensor"):
        secateur.plan(model, x, secateur.Budget(macs=0.7), secateur.PruneConfig(criterion=name), data=[x])


def test_data_is_asked_for():
    model, x, _ = build(Images)
    with pytest.raises(ConfigError, match=r"Criterion 'apoz' needs data. Pass data=batches of x"):
        secateur.plan(model, x, secateur.Budget(macs=0.7), secateur.PruneConfig(criterion="apoz"))
    for needs in ("activity", "model_gates", "divergences"):
        with pytest.raises(ConfigError, match="There is no batch to run the model on"):
            measure(model, groups_of(model, x), [needs], [])


def test_another_path_on_real_data_is_an_error():
    class Fickle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(self.a(x).tanh() if torch.is_grad_enabled() else self.a(x).relu())

    model, x = Fickle(), torch.randn(4, 3)
    groups = groups_of(model, x)
    with pytest.raises(CaptureError, match=r"the real run calls aten\.tanh\.default where the record has aten\.relu"):
        collect_gates(model, groups, [(x, torch.zeros(4).long())])


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x,), lambda x: [x, None], lambda x: {"ids": x, "labels": 3}])
def test_inputs_come_in_every_form(wrap):
    model, x, _ = build(Tokens)
    groups = groups_of(model, x)
    found = collect_activity(model, groups, [wrap(x)])
    for name, values in collect_activity(model, groups, [x]).items():
        torch.testing.assert_close(found[name].rms, values.rms)


def test_logits_in_a_container_are_found():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, _, _ = build(Tokens)

        def forward(self, ids):
            return {"logits": self.inner(ids), "hidden": None}

    model, x, _ = build(Tokens)
    wrapped = Wrapped().eval()
    assert logits_of(wrapped(x)).shape == (7, 5)
    inner, outer = (collect_model_gates(m, groups_of(m, x), [x]) for m in (model, wrapped))
    for name, gates in inner.items():
        torch.testing.assert_close(outer[f"inner.{name}"], gates)
