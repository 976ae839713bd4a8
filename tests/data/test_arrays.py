"""Samples in memory: a batch is the stack of its items, however it is fetched, and statistics are the plain ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from secateur.data import ArrayDataset, batches, channel_statistics, forward, load_data, loader, logits_of
from secateur.data.batches import check_batch
from secateur.errors import DataError


def images(n: int = 20, seed: int = 0) -> ArrayDataset:
    g = torch.Generator().manual_seed(seed)
    x = torch.randint(256, (n, 3, 4, 5), generator=g, dtype=torch.uint8)
    return ArrayDataset(x, torch.arange(n) % 3, mean=torch.tensor([0.1, 0.2, 0.3]), std=torch.tensor([0.5, 1.0, 2.0]))


def test_item_is_the_normalised_image():
    data = images()
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 1.0, 2.0]).view(3, 1, 1)
    x, y = data[7]
    torch.testing.assert_close(x, (data.x[7].float() / 255 - mean) / std)
    assert y == 1
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


@given(st.lists(st.integers(0, 19), min_size=1, max_size=40))
@settings(max_examples=30, deadline=None)
def test_batch_is_the_stack_of_its_items(indices):
    data = images()
    x, y = data.fetch(indices)
    assert torch.equal(x, torch.stack([data[i][0] for i in indices]))
    assert torch.equal(y, torch.stack([data[i][1] for i in indices]))


def test_all_loaders_give_the_same_batches():
    data = images()
    plain = list(DataLoader(data, batch_size=8))
    ours = list(batches(data, batch_size=8))
    sliced = [data.fetch(slice(at, at + 8)) for at in (0, 8, 16)]
    for a, b, c in zip(plain, ours, sliced, strict=True):
        assert all(torch.equal(u, v) and torch.equal(u, w) for u, v, w in zip(a, b, c, strict=True))


def test_iterating_leaves_the_global_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(batches(images(), batch_size=4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(3000, 2), (1500, 3, 4, 4)])
def test_statistics_are_the_plain_ones_over_any_chunks(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 3 + 5
    mean, std = channel_statistics(x)
    by_channel = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean, by_channel.mean(1).float())
    torch.testing.assert_close(std, by_channel.std(1, correction=0).float())


def test_statistics_of_uint8_are_in_the_units_of_the_floats():
    data = images()
    mean, std = channel_statistics(data.x)
    as_float = channel_statistics(data.x.float() / 255)
    torch.testing.assert_close((mean, std), as_float)


def test_constant_channel_stays_finite():
    x = torch.full((10, 2), 7.25)
    mean, std = channel_statistics(x)
    assert ArrayDataset(x, torch.zeros(10, dtype=torch.long), mean=mean, std=std).fetch(slice(None))[0].abs().max() == 0
    grey = torch.full((10, 1, 2, 2), 9, dtype=torch.uint8)
    assert channel_statistics(grey)[1].item() == 1


def test_subset_keeps_order_and_normalisation():
    data = images()
    part = data.subset([4, 2])
    assert torch.equal(part[0][0], data[4][0])
    assert torch.equal(part[1][0], data[2][0])


@pytest.mark.parametrize(
    ("x", "y", "text"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.long), r"x \(3, 2\) and y \(2,\) do not fit"),
        (torch.zeros(3), torch.zeros(3, dtype=torch.long), "do not fit"),
        (torch.zeros(3, 2, dtype=torch.int32), torch.zeros(3, dtype=torch.long), "x has dtype torch.int32"),
        (torch.zeros(3, 2), torch.zeros(3), "y has dtype torch.float32"),
    ],
)
def test_misfits_are_named(x, y, text):
    with pytest.raises(DataError, match=text):
        ArrayDataset(x, y)


def test_empty_and_lengthless_data_are_named():
    with pytest.raises(DataError, match="holds no samples"):
        list(batches(images().subset([])))
    with pytest.raises(DataError, match="has no length"):
        list(batches(Dataset()))


def test_batches_must_be_pairs_or_dicts_with_labels():
    with pytest.raises(DataError, match=r"keys \['x'\], but no 'labels'"):
        check_batch({"x": torch.zeros(1)})
    with pytest.raises(DataError, match="A batch is a Tensor"):
        check_batch(torch.zeros(1))


class Keyword(torch.nn.Module):
    def forward(self, a, b, labels=None):
        return {"logits": a + b, "saw_labels": labels is not None}


def test_dict_batches_become_keywords():
    batch = {"a": torch.ones(2), "b": torch.ones(2), "labels": torch.zeros(2)}
    assert not forward(Keyword(), batch)["saw_labels"]
    assert forward(Keyword(), batch, with_labels=True)["saw_labels"]
    assert logits_of(forward(Keyword(), batch)).tolist() == [2.0, 2.0]


def test_outputs_without_logits_are_named():
    assert logits_of((torch.ones(1), None)).item() == 1
    with pytest.raises(DataError, match="gave a str without logits"):
        logits_of("hello")


def test_dict_items_are_stacked():
    class Items(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, i):
            return {"ids": torch.tensor([i, i]), "labels": torch.tensor(i)}

    (batch,) = loader(Items(), [[2, 0]])
    assert batch["ids"].tolist() == [[2, 2], [0, 0]]


def test_digits_are_cut_by_class_without_overlap():
    splits = load_data("digits", seed=1)
    rows = torch.cat([part.x.flatten(1) for part in splits.parts().values()])
    every = load_data("digits", seed=2)
    others = torch.cat([part.x.flatten(1) for part in every.parts().values()])
    assert sorted(rows.tolist()) == sorted(others.tolist())  # nothing lost, nothing twice
    shares = torch.stack([torch.bincount(p.y, minlength=10) / len(p) for p in splits.parts().values()])
    assert (shares.amax(0) - shares.amin(0)).max() < 0.01
    assert not torch.equal(splits.test.y, every.test.y)


def test_same_seed_same_cut():
    a, b = load_data("digits", seed=5), load_data("digits", seed=5)
    for name, part in a.parts().items():
        assert torch.equal(part.x, b.parts()[name].x)


def test_train_alone_sets_the_statistics():
    splits = load_data("digits")
    x, _ = splits.train.fetch(slice(None))
    assert abs(x.mean().item()) < 1e-5
    assert abs(x.std().item() - 1) < 1e-4
    assert torch.equal(splits.test.mean, splits.train.mean)
    assert abs(splits.test.fetch(slice(None))[0].mean().item()) > 1e-4
