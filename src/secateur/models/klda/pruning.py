"""Pruning a fitted KLDA by what its assignments lose: words, hidden units, components."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.allocate import Budget
from secateur.boundary import plan_boundary
from secateur.data.batches import labels_of
from secateur.edits import Prune
from secateur.errors import ConfigError
from secateur.models.klda.features import Columns
from secateur.models.klda.network import KLDANet
from secateur.models.klda.training import Rows, dense, divergence, logits
from secateur.planning import PruneConfig, plan
from secateur.plans import Plan
from secateur.surgery import apply
from secateur.train import fit_
from secateur.vocabulary import keep_best, plan_words

if TYPE_CHECKING:
    from secateur.models.klda.estimator import KLDA


@dataclass(frozen=True, kw_only=True)
class KLDABudget:
    """What may be kept of a KLDA, and how to choose it.

    Args:
        features: part of the input columns (of the vocabulary) that stays, in (0, 1].
        hidden: part of the hidden units that stays, in (0, 1]. The latent space stays whole.
        n_clusters: components that stay; None keeps all.
        criterion: of hidden units, a registered name ("kl", "kl_fisher", "random", "l2", …).
        word_score: of columns, a name of `secateur.vocabulary.WORD_SCORES`.
        n_rounds: how many times columns are scored, each time without those that are gone by then.
        epochs: of fitting the smaller model's assignments to the dense ones afterwards, without labels; 0 leaves it.
        lr: learning rate of that.
        n_calibration: samples that hidden units are scored on.
        seed: of whatever is drawn.
    """

    features: float = 1.0
    hidden: float = 1.0
    n_clusters: int | None = None
    criterion: str = "kl"
    word_score: str = "kl"
    n_rounds: int = 1
    epochs: int = 10
    lr: float = 1e-3
    n_calibration: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("features", "hidden"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name}={getattr(self, name)} is outside (0, 1]. It is the part that is kept.")
        if self.n_clusters is not None and self.n_clusters < 1:
            raise ConfigError(f"n_clusters={self.n_clusters} must be at least 1.")


def component_scores(found: Tensor) -> Tensor:
    """Score components by KL(p without k || p) = -log(1 - p_k), averaged over samples, in nats. Larger = keep.

    p without k is the assignment of which p_k is taken and the rest scaled to sum 1. (The other direction is infinite.)

    Args:
        found: (N, K) logits.

    >>> component_scores(torch.tensor([[0.75, 0.25]]).log())
    tensor([1.3863, 0.2877])
    """
    p = found.double().softmax(1)
    return -torch.log1p(-p.clamp(max=1 - 1e-12)).mean(0).float()


def prune(model: KLDA, X: Any, budget: KLDABudget) -> KLDA:
    """Return a smaller copy; see `KLDA.prune`."""
    work = _Work(copy.deepcopy(model), model.columns(X), budget)
    target = logits(model.network_, work.x)
    n_features = max(1, round(budget.features * work.x.shape[1]))
    if n_features < work.x.shape[1]:
        keep = work.keep_columns(n_features)
        work.small.features_ = work.small.features_.restrict(keep)
        work.x = work.small.columns(X)
    if budget.hidden < 1:
        work.narrow()
    if budget.n_clusters is not None and budget.n_clusters < target.shape[1]:
        keep = keep_best(component_scores(target), budget.n_clusters)
        work.apply(plan_boundary(work.small.network_, dense(work.x[:2]), "outputs", keep))
        target = target[:, keep]
        if hasattr(model, "classes_"):
            work.small.classes_ = model.classes_[list(keep)]
    if budget.epochs:
        work.follow(target)
    return work.small.settle_(work.x)


@dataclass
class _Work:
    """A copy that is being pruned, and the training samples as columns."""

    small: KLDA
    x: Columns
    budget: KLDABudget

    def keep_columns(self, n: int) -> tuple[int, ...]:
        """Keep the n columns that the assignments need most; say which."""
        made, keep = plan_words(
            self.small.network_,
            Rows(self.x).batches(),
            self.x.shape[1],
            n,
            self.budget.word_score,
            n_rounds=self.budget.n_rounds,
            seed=self.budget.seed,
        )
        self.apply(made)
        return keep

    def narrow(self) -> None:
        """Drop hidden units, by the engine that prunes any network."""
        drawn = torch.randperm(self.x.shape[0], generator=torch.Generator().manual_seed(self.budget.seed))
        batches = list(Rows(self.x[drawn[: self.budget.n_calibration].numpy()]).batches())
        config = PruneConfig(criterion=self.budget.criterion, ignore=("head.*",), seed=self.budget.seed)
        width = Budget(width=self.budget.hidden)
        self.apply(plan(self.small.network_, batches[0][:2], width, config, data=batches), is_proven=True)

    def follow(self, target: Tensor) -> None:
        """Train the smaller network to give the dense one's assignments: KL(p dense || p small)."""
        rows = Rows(self.x, target.softmax(1))
        config = replace(self.small.train_config(self.budget.epochs, self.budget.seed), lr=self.budget.lr)
        fit_(
            nn.Sequential(nn.Dropout(self.small.denoising), self.small.network_),
            rows,
            config=config,
            loss=lambda out, batch: divergence(out, labels_of(batch)),
            progress=False,
        )

    def apply(self, made: Plan, *, is_proven: bool = False) -> None:
        """Carry out a plan, and write it down. What changes the inputs or outputs themselves has no proof on them."""
        smaller = apply(self.small.network_, made, verify=is_proven)
        assert isinstance(smaller, KLDANet)
        self.small.network_ = smaller
        self.small.edits_ = self.small.edits_.then(Prune(made))
