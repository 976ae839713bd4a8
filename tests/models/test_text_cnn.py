"""TextCNN: what it computes, and its way through training, pruning, vocabulary and compression."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

import secateur
from secateur.data import ArrayDataset, renumbered
from secateur.errors import ConfigError
from secateur.measure import evaluate
from secateur.models import TextCNN
from secateur.sources import build_model, example_input
from secateur.train import TrainConfig, fit_
from secateur.vocabulary import plan_words

N_WORDS = 40


@pytest.fixture(scope="module")
def trained():
    """Class 1 where word 5 comes before word 6 at once; words 20 and above say nothing."""
    g = torch.Generator().manual_seed(0)
    x = torch.randint(7, N_WORDS, (256, 12), generator=g)
    y = torch.arange(256) % 2
    x[:, 9:] = 0
    x[y == 1, 3], x[y == 1, 4] = 5, 6
    x[y == 0, 2], x[y == 0, 7] = 6, 5
    data = ArrayDataset(x, y)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TextCNN(N_WORDS, 2, embed_dim=8, n_channels=8, kernel_sizes=(2, 3), dropout=0.1)
    fit_(model, data, config=TrainConfig(epochs=12, lr=2e-2, seed=0, num_threads=1), progress=False)
    return model, data


def test_forward_is_kims():
    torch.manual_seed(0)
    model = TextCNN(9, 3, embed_dim=4, n_channels=2, kernel_sizes=(1, 3)).eval()
    ids = torch.tensor([[2, 5, 8, 3, 0]])
    vectors = model.embedding.weight[ids[0]]  # (T, D)
    pooled = []
    for k, conv in zip((1, 3), model.convs, strict=True):
        padded = F.pad(vectors, (0, 0, k // 2, k // 2))
        windows = torch.stack([padded[t : t + k] for t in range(5)])  # (T, k, D)
        values = torch.einsum("tkd,cdk->tc", windows, conv.weight) + conv.bias
        pooled.append(values.clamp(min=0).amax(0))
    expected = model.linear(model.norm(torch.cat(pooled).unsqueeze(0)))
    torch.testing.assert_close(model(ids), expected)


def test_texts_shorter_than_a_kernel_are_read():
    assert TextCNN(9, kernel_sizes=(3, 4, 5)).eval()(torch.tensor([[3]])).shape == (1, 2)


def test_it_learns_an_order_of_words(trained):
    model, data = trained
    assert evaluate(model, data).accuracy > 0.95


@pytest.mark.parametrize("criterion", ["l2", "kl", "kl_fisher"])
def test_units_are_pruned_and_proven(trained, criterion):
    model, data = trained
    x = data.x[:32]
    plan = secateur.plan(model, x, secateur.Budget(width=0.5), secateur.PruneConfig(criterion=criterion), data=[x])
    small = secateur.apply(model, plan)
    assert secateur.verify(model, small, plan, x).is_ok
    assert small.embedding.weight.shape == (N_WORDS, 4)
    assert small.convs[0].weight.shape == (4, 4, 2)


def test_words_that_matter_stay(trained):
    model, data = trained
    plan, keep = plan_words(model, [data.x], N_WORDS, 12, "kl")
    assert {5, 6} < set(keep)
    small = secateur.apply(model, plan, verify=False)
    smaller = ArrayDataset(renumbered(data.x, keep, N_WORDS), data.y)
    assert evaluate(small, smaller).accuracy > 0.9
    assert plan.cost_after.params < plan.cost_before.params


def test_compress_takes_token_numbers(trained):
    model, data = trained
    config = secateur.CompressConfig(finetune=TrainConfig(epochs=1, num_threads=1))
    done = secateur.compress(model, data, budget=secateur.Budget(macs=0.5), config=config, progress=False)
    assert done.report.finetuned.macs <= 0.5 * done.report.dense.macs


def test_it_is_built_by_its_source_and_saved(tmp_path):
    source = "builtin:text_cnn?n_words=30&n_classes=3&n_channels=8"
    model = build_model(source).eval()
    x = example_input(source, model)
    plan = secateur.plan(model, x, secateur.Budget(width=0.5))
    small = secateur.apply(model, plan)
    again = secateur.load(secateur.save(small, tmp_path / "small", plan=plan, source=source))
    torch.testing.assert_close(again(x), small(x))


def test_widths_must_be_positive():
    with pytest.raises(ConfigError, match="n_channels=0"):
        TextCNN(9, n_channels=0)
