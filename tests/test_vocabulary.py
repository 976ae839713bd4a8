"""Words and other axes at the boundary: the smaller model computes what the original does without what went."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import secateur
from secateur.boundary import plan_boundary
from secateur.data import Words, renumbered
from secateur.edits import Edits
from secateur.errors import ConfigError, DataError, PlanError
from secateur.models import KLDANet, TextCNN
from secateur.steps import Context
from secateur.steps import Words as WordsStep
from secateur.steps.words import Reader
from secateur.vocabulary import WORD_SCORES, keep_best, plan_words, score_words

COLUMNS = torch.tensor([[1.0, 0, 2, 0, 0], [0, 1, 1, 0, 0], [3, 0, 0, 1, 0]])
TOKENS = torch.tensor([[2, 4, 2, 0], [3, 1, 0, 0], [5, 2, 3, 4]])


def network(x):
    torch.manual_seed(0)
    model = KLDANet(5, 3, hidden=(8,), latent_dim=2) if x is COLUMNS else TextCNN(7, 3, 4, 5, kernel_sizes=(2, 3))
    for p in model.parameters():
        nn.init.normal_(p)
    return model.eval()


@pytest.mark.parametrize("x", [COLUMNS, TOKENS], ids=["columns", "tokens"])
def test_kl_is_that_of_the_predictions_without_the_word(x):
    model = network(x)
    size = 5 if x is COLUMNS else 7
    with torch.no_grad():
        p = model(x).double().log_softmax(1)
        expected = torch.zeros(size)
        for word in range(0 if x is COLUMNS else 1, size):
            without = x.clone()
            if x is COLUMNS:
                without[:, word] = 0
            else:
                without[x == word] = 1
            q = model(without).double().log_softmax(1)
            expected[word] = (p.exp() * (p - q)).sum(1).mean()
    torch.testing.assert_close(score_words(model, [x[:2], x[2:]], size, "kl"), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("x", [COLUMNS, TOKENS], ids=["columns", "tokens"])
def test_fisher_form_is_half_the_second_derivative_of_kl(x):
    """Averaged over every label that could be drawn, gamma^2 / 2 is the curvature of KL by a factor on the word."""
    model = network(x).double().requires_grad_(False)
    size = 5 if x is COLUMNS else 7
    x = x.double() if x is COLUMNS else x
    draws = [score_words(model, [x.repeat(2000, 1)], size, "kl_fisher", seed=seed) for seed in range(10)]
    found = torch.stack(draws).mean(0)

    def kl(factor, word):
        if x.is_floating_point():
            scale = torch.ones(size, dtype=torch.double)
            out = model(x * torch.where(torch.arange(size) == word, factor, scale))
        else:
            table = model.embedding.weight.clone()
            table[word] = table[word] * factor
            out = torch.func.functional_call(model, {"embedding.weight": table}, (x,))
        p = model(x).log_softmax(1).detach()
        return (p.exp() * (p - out.log_softmax(1))).sum(1).mean()

    step = 1e-3
    expected = torch.stack([kl(1 + step, word) + kl(1 - step, word) for word in range(size)]) / (2 * step**2)
    torch.testing.assert_close(found.double(), expected, rtol=0.1, atol=2e-3)


@pytest.mark.parametrize("x", [COLUMNS, TOKENS], ids=["columns", "tokens"])
def test_words_without_occurrences_score_nothing_and_frequency_counts_samples(x):
    model = network(x)
    size = 5 if x is COLUMNS else 7
    last = size - 1
    for how in ("frequency", "kl", "kl_fisher"):
        assert score_words(model, [x], size, how)[last] == 0
    expected = [2, 1, 2, 1, 0] if x is COLUMNS else [0, 1, 2, 2, 2, 1, 0]
    assert score_words(model, [x], size, "frequency").tolist() == expected


def test_random_scores_are_those_of_the_seed():
    scores = [score_words(network(COLUMNS), [COLUMNS], 5, "random", seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


@pytest.mark.parametrize("how", sorted(WORD_SCORES))
def test_fewer_columns_compute_what_zeroed_columns_do(how):
    model = network(COLUMNS)
    plan, keep = plan_words(model, [COLUMNS], 5, 3, how)
    small = secateur.apply(model, plan, verify=False)
    zeroed = torch.zeros_like(COLUMNS)
    zeroed[:, keep] = COLUMNS[:, keep]
    torch.testing.assert_close(small(COLUMNS[:, keep]), model(zeroed))
    assert small.encoder[0].in_features == 3
    assert secateur.Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("how", sorted(WORD_SCORES))
def test_fewer_words_compute_what_unknown_words_do(how):
    model = network(TOKENS)
    plan, keep = plan_words(model, [TOKENS], 7, 4, how)
    small = secateur.apply(model, plan, verify=False)
    assert keep[:2] == (0, 1)
    unknown = torch.where(torch.isin(TOKENS, torch.tensor(keep)), TOKENS, 1)
    torch.testing.assert_close(small(renumbered(TOKENS, keep, 7)), model(unknown))
    assert small.embedding.num_embeddings == 4
    assert plan.cost_after.params == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("x", [COLUMNS, TOKENS], ids=["columns", "tokens"])
def test_rounds_score_what_is_lost_by_then(x):
    """Dropping one word per round is greedy elimination, here done by hand."""
    model, size = network(x), 5 if x is COLUMNS else 7
    n = size - 3

    def without(words):
        out = x.clone()
        for word in words:
            if x is COLUMNS:
                out[:, word] = 0
            else:
                out[x == word] = 1
        return model(out).detach().double().log_softmax(1)

    p, gone = without([]), []
    for _ in range(3):
        left = [w for w in range(size) if w not in gone and (x is COLUMNS or w > 1)]
        lost = [float((p.exp() * (p - without([*gone, w]))).sum(1).mean()) for w in left]
        gone.append(-min(zip(lost, [-w for w in left], strict=True))[1])
    _, keep = plan_words(model, [x], size, n, "kl", n_rounds=50)
    assert keep == tuple(w for w in range(size) if w not in gone)


def test_vocabulary_and_its_plan_shrink_alike():
    words = Words.of(["fig date fig", "grape fig", "date"])
    keep = (0, 1, 3)
    text = ["grape date fig"]
    assert torch.equal(words.restrict(keep).encode(text, length=4), renumbered(words.encode(text, length=4), keep, 5))


def test_fewer_outputs_are_those_kept():
    model = network(COLUMNS)
    plan = plan_boundary(model, COLUMNS, "outputs", [0, 2])
    expected = model(COLUMNS)[:, [0, 2]].log_softmax(1)  # the weights of the mixture are scaled to sum 1 again
    torch.testing.assert_close(secateur.apply(model, plan, verify=False)(COLUMNS).log_softmax(1), expected)


def test_a_tied_head_loses_the_same_words():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(6, 4)

        def forward(self, ids):
            return self.embedding(ids) @ self.embedding.weight.t()

    model, keep = Tied(), [0, 1, 4]
    ids = torch.tensor([[1, 4, 0]])
    small = secateur.apply(model, plan_boundary(model, ids, "vocabulary", keep), verify=False)
    torch.testing.assert_close(small(torch.tensor([[1, 2, 0]])), model(ids)[..., keep])


def test_boundary_plans_compose_with_others():
    model = network(COLUMNS)
    first = plan_boundary(model, COLUMNS, "inputs", [0, 2, 3])
    once = secateur.apply(model, first, verify=False)
    second = secateur.plan(once, COLUMNS[:, :3], secateur.Budget(width=0.5))
    twice = secateur.apply(once, second)
    both = secateur.apply(model, secateur.compose(first, second), verify=False)
    assert torch.equal(both(COLUMNS[:, :3]), twice(COLUMNS[:, :3]))


def test_what_does_not_fit_is_named():
    model = network(COLUMNS)
    for keep in ([], [1, 0], [0, 0], [5], [-1]):
        with pytest.raises(PlanError, match="5 units"):
            plan_boundary(model, COLUMNS, "inputs", keep)
    with pytest.raises(PlanError, match="has 0 groups of vocabulary"):
        plan_boundary(model, COLUMNS, "vocabulary", [0])
    with pytest.raises(DataError, match=r"A batch is \[3\]"):
        score_words(model, [torch.zeros(3)], 5)


def test_best_words_are_sorted_and_ties_keep_the_lower():
    assert keep_best(torch.tensor([1.0, 2.0, 2.0, 0.0]), 1) == (1,)
    assert keep_best(torch.tensor([1.0, 2.0, 2.0, 0.0]), 3, always=[3]) == (1, 2, 3)


def context(model, x):
    return Context(dense=model, inputs=lambda n: x[:n], calibration=lambda: [x])


@pytest.mark.parametrize("x", [COLUMNS, TOKENS], ids=["columns", "tokens"])
def test_the_step_reads_the_same_samples_without_the_words_that_went(x):
    model = network(x)
    done = WordsStep(kept=0.6).run(model, context(model, x))
    keep = done.facts["keep"]
    size = 5 if x is COLUMNS else 7
    assert len(keep) == round(0.6 * size)
    without = x.clone()
    for word in {*range(size)} - {*keep}:
        if x is COLUMNS:
            without[:, word] = 0
        else:
            without[x == word] = 1
    torch.testing.assert_close(done.model(x), model(without))
    assert sum(p.numel() for p in done.model.parameters()) < sum(p.numel() for p in model.parameters())
    again = Edits.from_json(Edits().then(done.edit).to_json()).replay(network(x))
    again.load_state_dict(done.model.state_dict())
    assert torch.equal(again(x), done.model(x))


@pytest.mark.parametrize("n_words", [7, 8, 1001])
def test_a_word_that_may_be_read_takes_a_bit_and_its_number_is_that_of_the_plan(n_words):
    keep = (0, 1, *range(3, n_words, 3))
    reader = Reader(nn.Identity(), keep, n_words, is_columns=False)
    ids = torch.arange(n_words).unsqueeze(0)
    assert torch.equal(reader(ids), renumbered(ids, keep, n_words))
    assert reader.table.numel() * reader.table.element_size() == (n_words + 7) // 8


def test_the_step_refuses_what_has_no_words_or_has_them_chosen():
    model = network(COLUMNS)
    small = WordsStep().run(model, context(model, COLUMNS)).model
    with pytest.raises(ConfigError, match="chosen already"):
        WordsStep().run(small, context(small, COLUMNS))
    images = torch.zeros(2, 1, 8, 8)
    with pytest.raises(ConfigError, match="Words are the columns"):
        WordsStep().run(model, context(model, images))
    with pytest.raises(ConfigError, match="kept=0 must lie"):
        WordsStep(kept=0)
