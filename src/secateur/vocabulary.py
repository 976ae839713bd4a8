"""Which words a model can do without: scores of input features and of token numbers. Larger = keep.

The inputs of a text model are either columns, one per word (a float tensor (B, V), 0 where a word is absent), or token
numbers (an integer tensor (B, T), with 0 for padding and 1 for unknown words). Both are asked the same question: what
changes without this word?
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from secateur.boundary import plan_boundary
from secateur.criteria.kl import predictions
from secateur.criteria.samples import inputs_of
from secateur.data.words import PAD, UNKNOWN
from secateur.errors import DataError
from secateur.forward import plain_forward
from secateur.plans import Plan
from secateur.registry import Registry

CHUNK = 1024  # variants of samples per forward

Pair = tuple[Tensor, Tensor]
"""A batch as it is, and without the words that are gone already."""

WordScore = Callable[[nn.Module, Iterable[Pair], int, torch.Generator], Tensor]
WORD_SCORES: Registry[str, WordScore] = Registry("word score")


def score_words(
    model: nn.Module,
    batches: Iterable[Any],
    size: int,
    how: str = "kl",
    *,
    keep: Iterable[int] | None = None,
    seed: int = 0,
) -> Tensor:
    """Score every word of a vocabulary.

    Args:
        model: from columns (B, size) or token numbers (B, T) to logits (B, K). It is not changed.
        batches: inputs, with labels (not looked at) or without.
        size: of the vocabulary.
        how: a name of `WORD_SCORES`.
        keep: the words that are there; None: all. Without the others, samples are scored as they are then.
        seed: where the score draws random numbers.
    Returns:
        (size,) float32.
    Raises:
        DataError: a batch is neither.

    >>> x = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    >>> score_words(nn.Linear(3, 2), [x], 3, "frequency")
    tensor([2., 1., 0.])
    """
    generator = torch.Generator().manual_seed(seed)
    kept = None if keep is None else tuple(keep)
    samples = (_checked(batch) for batch in batches)
    pairs = ((x, x if kept is None else _only(x, kept, size)) for x in samples)
    return WORD_SCORES[how](model, pairs, size, generator).float()


def keep_best(scores: Tensor, n: int, always: Iterable[int] = ()) -> tuple[int, ...]:
    """Return the sorted indices of the n largest scores, those in `always` first; ties keep the lower index.

    >>> keep_best(torch.tensor([0.0, 3.0, 1.0, 3.0]), 2), keep_best(torch.tensor([0.0, 3.0, 1.0]), 2, always=[0])
    ((1, 3), (0, 1))
    """
    ranked = scores.double().clone()
    ranked[list(always)] = torch.inf
    return tuple(sorted(ranked.sort(descending=True, stable=True).indices[:n].tolist()))


def plan_words(
    model: nn.Module, batches: Iterable[Any], size: int, n: int, how: str = "kl", *, n_rounds: int = 1, seed: int = 0
) -> tuple[Plan, tuple[int, ...]]:
    """Plan to keep the n words of a vocabulary that score best; of token numbers, 0 and 1 stay in any case.

    Args:
        n_rounds: how many times to score, each time without the words that are gone by then, so that of several words
            that could each be missed, not all go. Every round drops the same fraction.
    Returns:
        the plan, and the sorted numbers that stay (see `secateur.data.Words.restrict`, `renumbered`).
    Raises:
        PlanError: the model does not read columns or token numbers in one place.
    """
    samples = [_checked(batch) for batch in batches]
    is_columns = samples[0].is_floating_point()
    always = () if is_columns else (PAD, UNKNOWN)
    keep = tuple(range(size))
    for i in range(1, n_rounds + 1):
        scores = score_words(model, samples, size, how, keep=keep, seed=seed)
        gone = sorted({*range(size)} - {*keep})
        scores[gone] = -torch.inf
        n_left = n if i == n_rounds else round(size * (n / size) ** (i / n_rounds))
        keep = keep_best(scores, max(n_left, len(always)), always)
    return plan_boundary(model, samples[0][:2], "inputs" if is_columns else "vocabulary", keep), keep


def _only(x: Tensor, keep: Iterable[int], size: int) -> Tensor:
    """The samples without any word that isn't in `keep`."""
    is_kept = torch.zeros(size, dtype=torch.bool, device=x.device)
    is_kept[list(keep)] = True
    return x * is_kept if x.is_floating_point() else torch.where(is_kept[x], x, UNKNOWN)


@WORD_SCORES.register("random")
def random_scores(model: nn.Module, batches: Iterable[Pair], size: int, generator: torch.Generator) -> Tensor:
    """Score words by uniform random numbers: the baseline."""
    return torch.rand(size, generator=generator)


@WORD_SCORES.register("frequency")
def frequency_scores(model: nn.Module, batches: Iterable[Pair], size: int, generator: torch.Generator) -> Tensor:
    """score[w] = number of samples that word w occurs in."""
    return sum((torch.bincount(_occurrences(x)[1], minlength=size) for _, x in batches), torch.zeros(size))


@WORD_SCORES.register("kl")
def kl_scores(model: nn.Module, batches: Iterable[Pair], size: int, generator: torch.Generator) -> Tensor:
    """score[w] = mean over samples x of KL(p(. | x) || p(. | x without w)), in nats: exact.

    Only samples that hold the word change: this takes one forward per distinct word of each sample, not one per word of
    the vocabulary. Without a word, its column is 0, or its places hold `UNKNOWN`. Where words are gone already, it is
    what the divergence from the whole sample's prediction rises by, and may be negative.
    """
    total, n_samples = torch.zeros(size, dtype=torch.float64), 0
    with plain_forward(model):
        for x, left in batches:
            full = predictions(model(x)).flatten(1)
            so_far = _divergence(full, predictions(model(left)).flatten(1))
            rows, words = _occurrences(left)
            for row, word in zip(torch.split(rows, CHUNK), torch.split(words, CHUNK), strict=True):
                other = predictions(model(_without(left[row], word))).flatten(1)
                total.index_add_(0, word.cpu(), (_divergence(full[row], other) - so_far[row]).cpu())
            n_samples += len(x)
    return total / max(n_samples, 1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p || q) per sample."""
    return (log_p.exp() * (log_p - log_q)).sum(1)


@WORD_SCORES.register("kl_fisher")
def fisher_word_scores(model: nn.Module, batches: Iterable[Pair], size: int, generator: torch.Generator) -> Tensor:
    """score[w] = 1/2 * mean over samples n of gamma[n, w]^2: the KL divergence to second order, from one pass.

    gamma[n, w] is the derivative of -log p(y_n | x_n) by a factor on word w of sample n, with y_n drawn from the
    model's own prediction: x[n, w] times the gradient of that column, or the sum over the places of w of embedding
    times gradient (compare `secateur.criteria.kl_fisher`).
    """
    total, n_samples = torch.zeros(size, dtype=torch.float64), 0
    for _, x in batches:
        with plain_forward(model), torch.enable_grad():
            logits, values = _with_values(model, x)
            log_p = logits.flatten(1).log_softmax(1)
            drawn = torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator).to(x.device)
            (gradient,) = torch.autograd.grad(-log_p.gather(1, drawn).sum(), values)
        product = (values * gradient).detach()
        gamma = product if x.is_floating_point() else _by_word(product.sum(2), x, size)
        total += gamma.double().square().sum(0).cpu() / 2
        n_samples += len(x)
    return total / max(n_samples, 1)


def _with_values(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Run the model and return its logits with what words became: the columns, or the embeddings (B, T, D)."""
    if x.is_floating_point():
        x = x.detach().requires_grad_()
        return model(x), x
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    (table,) = [m for m in model.modules() if isinstance(m, nn.Embedding)]
    handle = table.register_forward_hook(keep)
    try:
        return model(x), seen[0]
    finally:
        handle.remove()


def _by_word(values: Tensor, ids: Tensor, size: int) -> Tensor:
    """(B, T) to (B, size): sums over the places that hold the same word."""
    return torch.zeros(len(ids), size, device=ids.device, dtype=values.dtype).scatter_add_(1, ids, values)


def _occurrences(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (sample, word) for every distinct word of every sample; padding is no word."""
    if x.is_floating_point():
        rows, words = x.nonzero(as_tuple=True)
        return rows, words
    samples = torch.arange(len(x), device=x.device).unsqueeze(1).expand_as(x)
    pairs = torch.unique(torch.stack([samples[x != PAD], x[x != PAD]], 1), dim=0)
    return pairs[:, 0], pairs[:, 1]


def _without(x: Tensor, words: Tensor) -> Tensor:
    """Sample i without words[i]."""
    if x.is_floating_point():
        return x.scatter(1, words.unsqueeze(1), 0.0)
    return x.masked_fill(x == words.unsqueeze(1), UNKNOWN)


def _checked(batch: Any) -> Tensor:
    x = inputs_of(batch)
    if not isinstance(x, Tensor) or x.dim() != 2:
        found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise DataError(
            f"A batch is {found}. Words are the columns of (B, V) floats, or the numbers in (B, T) integers."
        )
    return x
