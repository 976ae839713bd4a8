"""What a network does by its own values: choices among elements, numbers that the code goes on by, orders."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import secateur
from secateur import Budget
from secateur.capture import capture
from secateur.choices import as_chosen, choose_all
from secateur.errors import PlanError

aten = torch.ops.aten
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers, then code that is given them and the layers that are left."""

    def __init__(self, between, **layers: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleDict(layers)
        self.between = between

    def forward(self, x: Tensor):
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x))
        return self.between(self, x)


def widths(model: nn.Module) -> dict[str, int]:
    """What a plan of half the widths keeps of each group."""
    plan = secateur.plan(model, X, Budget(width=0.5))
    small = secateur.apply(model, plan)
    assert small(X) is not None
    return {g.name: len(g.keep) for g in plan.groups}


# numbers that the code goes on by


def early_exit(net: Net, y: Tensor) -> Tensor:
    if y.mean() > 0:
        return net.last(y)
    return y


def by_item(net: Net, y: Tensor) -> Tensor:
    return net.last(y) * y.max().item()


def in_a_loop(net: Net, y: Tensor) -> Tensor:
    steps = 0
    while y.norm() > 1 and steps < 3:
        y, steps = y / 2, steps + 1
    return net.last(y)


def on_the_stack(net: Net, y: Tensor) -> Tensor:
    return net.last(torch.sigmoid(y) * y.sum().item())


def in_an_object(net: Net, y: Tensor) -> Tensor:
    box = SimpleNamespace(inside=[{"y": y}])
    del y
    return net.last(box.inside[0]["y"] * box.inside[0]["y"].sum().item())


@pytest.mark.parametrize("between", [early_exit, by_item, in_a_loop, on_the_stack, in_an_object])
def test_what_the_code_may_still_read_keeps_its_width_and_the_rest_shrinks(between):
    model = Net(between)
    assert widths(model) == {"first features": 8}
    plan = secateur.plan(model, X, Budget(width=0.5))
    assert "test_choices.py" in plan.notes[0]
    assert "goes on by a learned value" in plan.notes[0]
    report = secateur.verify(model, secateur.apply(model, plan), plan, X)
    assert report.is_ok
    assert report.max_difference is not None
    assert "test_choices.py" in str(report)


def test_variables_that_are_not_read_again_shrink():
    class Late(Net):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.first(x))
            y = torch.relu(self.second(hidden))
            z = self.last(y)
            return z * z.max().item()

    assert widths(Late(None)) == {"first features": 8, "second features": 4}


def test_where_nothing_is_left_to_prune_the_reason_names_the_line():
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            return self.down(y if y.sum() > 0 else -y)

    graph = secateur.trace(Guarded(), X)
    assert graph.prunable == []
    assert "the record ends at aten._local_scalar_dense" in str(graph)
    with pytest.raises(PlanError, match=r"read by code that goes on by a learned value: .* \(test_choices.py:\d+\)"):
        secateur.plan(Guarded(), X, Budget(width=0.5))


def test_a_model_that_fails_after_the_end_of_its_record_fails_its_proof():
    """`second` runs again after the record has ended, on what was not cut."""

    def again(net: Net, y: Tensor) -> Tensor:
        hidden = net.layers["up"](y)
        if y.mean() > -1:
            return net.last(net.second(torch.relu(hidden)))
        return y

    model = Net(again, up=nn.Linear(8, 16))
    plan = secateur.plan(model, X, Budget(width=0.5))
    small = secateur.apply(model, plan, verify=False)
    report = secateur.verify(model, small, plan, X)
    assert not report.is_ok
    assert "fails after the end of the record" in report.problems[0]


# choices among elements


@pytest.mark.parametrize(
    "pick",
    [
        lambda y, on: y[on],
        lambda y, on: y[torch.where(on)[0]],
        lambda y, on: y.index_put((on,), y[on] * 2),
        lambda y, on: torch.zeros_like(y).masked_fill(on[:, None], 1.0) * y,
        lambda y, on: torch.stack([y[on.long() == i].mean(0) for i in torch.unique(on.long())]),
        lambda y, on: y * torch.masked_select(y, on[:, None]).reshape(-1, y.shape[1])[:1],
    ],
    ids=["mask", "where", "index_put", "masked_fill", "unique", "masked_select"],
)
def test_learned_choices_shrink_around_what_they_index(pick):
    """As torchvision's detectors choose boxes: by a score of each row, never by how wide the row is."""

    def between(net: Net, y: Tensor) -> Tensor:
        return net.last(pick(y, net.layers["score"](y)[:, 0] > 0))

    model = Net(between, score=nn.Linear(8, 1))
    kept = widths(model)
    assert kept["first features"] == 8
    if "masked_select" not in str(capture(model, X)):
        assert kept["second features"] == 4


@pytest.mark.parametrize("is_fake", [True, False])
def test_known_values_are_answered_truly(is_fake):
    def between(net: Net, y: Tensor) -> Tensor:
        numbers = torch.tensor([3, 1, 3, 7])
        on = numbers == 3
        sizes.append((len(torch.unique(numbers)), y[on].shape[0], len(on.nonzero()), int(numbers.max())))
        sizes.append((y.masked_select(on[:, None]).numel(), len(torch.bincount(numbers)), torch.equal(on, on)))
        sizes.append((y.index_put((on,), torch.zeros(2, 8)).shape[0], len(numbers[on])))
        return net.last(y)

    sizes: list[tuple[int, ...]] = []
    trace = capture(Net(between), X, is_fake=is_fake)
    assert sizes == [(3, 2, 2, 7), (16, 8, True), (4, 2)]
    assert not any(op.chooses_all for op in trace.ops)
    assert not trace.ended_by


def test_every_element_is_chosen_where_all_of_them_are_hits():
    """The canonical answers are torch's own where every element is one."""
    x, on = torch.rand(3, 4), torch.ones(3, 4, dtype=torch.bool)
    same = torch.full((5,), 2)
    for func, args in [
        (aten.nonzero.default, (on,)),
        (aten.nonzero.default, (torch.tensor(1.0),)),
        (aten.masked_select.default, (x, on)),
        (aten.masked_select.default, (x, on[:1])),
        (aten.index.Tensor, (x, [on])),
        (aten.index.Tensor, (x, [None, on[0]])),
        (aten.index_put.default, (x, [on[:, 0]], torch.zeros(3, 4))),
        (aten._unique2.default, (same, True, True, True)),
    ]:
        for mine, torchs in zip(_tensors(choose_all(func, args, {})), _tensors(func(*args)), strict=True):
            torch.testing.assert_close(mine, torchs)


def _tensors(out) -> list[Tensor]:
    return list(out) if isinstance(out, tuple) else [out]


# orders


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (aten.topk.default, (2,)),
        (aten.sort.default, ()),
        (aten.max.dim, (1,)),
        (aten.argmax.default, (1,)),
        (aten.argmax.default, (1, True)),
    ],
    ids=str,
)
def test_of_two_orders_that_rounding_decides_the_given_one_is_followed(func, args):
    x = torch.tensor([[0.5, 1.0, 0.2], [3.0, 1.0, 2.0]])
    near = x + torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    near[0, 0] = 1.0 - 1e-6  # as good as the largest
    other = x.clone()
    other[0, 0] = 1.0 + 1e-6
    out, wanted = func(near, *args), func(other, *args)
    indices = _tensors(wanted)[-1]
    followed = _tensors(as_chosen(func, (near, *args), {}, out, indices))
    assert torch.equal(followed[-1], indices)
    for mine, theirs in zip(followed, _tensors(wanted), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_an_order_that_is_not_as_good_is_not_followed():
    x = torch.tensor([0.5, 1.0, 0.2])
    out = aten.topk.default(x, 1)
    values, indices = as_chosen(aten.topk.default, (x, 1), {}, out, torch.tensor([0]))
    assert indices.item() == 1
    assert values.item() == 1.0


# state


class Caching(nn.Module):
    """Keeps what its first forward computed, as torchvision's `MultiScaleRoIAlign` keeps its scales."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        self.scale: float | None = None
        self.seen: dict[str, list[Tensor]] = {"tables": []}
        self.register_buffer("table", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale is None:
            self.scale = torch.log2(torch.tensor(4.0)).item()
            self.table = torch.arange(3.0)
            self.seen["more"] = [self.table]
        return self.down(self.up(x)) * self.scale + self.table


def test_what_a_forward_keeps_is_not_kept_from_a_capture():
    model = Caching()
    plan = secateur.plan(model, X, Budget(width=0.5))
    small = secateur.apply(model, plan)
    for m in (model, small):
        assert m.scale is None
        assert m.table is None
        assert m.seen == {"tables": []}
    assert small.up.out_features == 4


def test_a_few_boxes_stand_for_all() -> None:
    """Else a detector's heads would run on each of a thousand, where a real image has a handful."""
    pytest.importorskip("torchvision")
    boxes = torch.rand(500, 4)
    chosen = choose_all(torch.ops.torchvision.nms.default, (boxes, torch.rand(500), 0.5), {})
    assert len(chosen) == len(chosen.unique()) == 16
    assert (int(chosen[0]), int(chosen[-1])) == (0, 499)
    few = choose_all(torch.ops.torchvision.nms.default, (boxes[:3], torch.rand(3), 0.5), {})
    assert few.tolist() == [0, 1, 2]
    assert choose_all(torch.ops.torchvision.nms.default, (boxes[:0], torch.rand(0), 0.5), {}).tolist() == []
