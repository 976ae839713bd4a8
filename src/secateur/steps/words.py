"""Fewer words: a network behind those that it still reads, so that it takes the samples that the dense one takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from secateur.coding.bits import pack_bits
from secateur.criteria.samples import inputs_of
from secateur.data.words import UNKNOWN
from secateur.edits import EDITS, Prune
from secateur.errors import ConfigError, PlanError, VerifyError
from secateur.forward import plain_forward
from secateur.graph import trace
from secateur.plans import Plan
from secateur.steps.base import STEPS, Context, Done
from secateur.tensors import tensors_in
from secateur.vocabulary import WORD_SCORES, plan_words

TOLERANCE = 1e-3  # of the largest output: sums over fewer words are added in another order


class Reader(nn.Module):
    """y = model(x[:, keep]) of columns (B, V); y = model(numbers[x]) of token numbers (B, T), what went being unknown.

    `table` is `keep`, or a bit for each word, so that the file of a smaller network does not grow by a number per word.

    Args:
        model: reads len(keep) words.
        keep: sorted indices of the words that it reads, of n_words.
        is_columns: samples are columns, not token numbers.

    >>> Reader(nn.Identity(), (0, 2), 3, is_columns=True)(torch.tensor([[5.0, 6.0, 7.0]]))
    tensor([[5., 7.]])
    >>> Reader(nn.Identity(), (0, 1, 3), 4, is_columns=False)(torch.tensor([[0, 2, 3]]))
    tensor([[0, 1, 2]])
    """

    table: Tensor

    def __init__(self, model: nn.Module, keep: tuple[int, ...], n_words: int, *, is_columns: bool) -> None:
        super().__init__()
        self.model = model
        self.is_columns = is_columns
        indices = torch.tensor(keep)
        is_read = torch.zeros(n_words, dtype=torch.long).index_fill_(0, indices, 1)
        self.register_buffer("table", indices.int() if is_columns else pack_bits(is_read, 1))

    def forward(self, x: Tensor) -> Any:
        return self.model(x.index_select(1, self.table) if self.is_columns else self._numbers()[x])

    def _numbers(self) -> Tensor:
        """What each token number becomes: how many of those that are read are lower, or `UNKNOWN`."""
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=self.table.device)
        bits = torch.bitwise_right_shift(self.table.unsqueeze(1), shifts).bitwise_and(1).flatten()
        return torch.where(bits == 1, bits.cumsum(0) - 1, UNKNOWN)


@EDITS.register("words")
@dataclass(frozen=True)
class Reading:
    """A network whose vocabulary a plan has cut, behind the words that stay."""

    kind: ClassVar[str] = "words"
    plan: Plan
    keep: tuple[int, ...]
    n_words: int
    is_columns: bool

    def replay(self, model: nn.Module) -> nn.Module:
        """Cut a copy, and put it behind a `Reader`."""
        small = Prune(self.plan).replay(model)
        made = Reader(small, self.keep, self.n_words, is_columns=self.is_columns)
        return made.train(small.training)

    def to_data(self) -> dict[str, Any]:
        """Plain data."""
        facts = {"keep": list(self.keep), "n_words": self.n_words, "is_columns": self.is_columns}
        return {**Prune(self.plan).to_data(), **facts}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """Undo `to_data`."""
        keep = tuple(map(int, data["keep"]))
        return cls(Prune.from_data(data).plan, keep, int(data["n_words"]), bool(data["is_columns"]))


@STEPS.register("words")
@dataclass(frozen=True, kw_only=True)
class Words:
    """Read fewer words: columns (B, V) of a bag of words, or rows of an embedding of token numbers (B, T).

    The smaller network takes the samples that the dense one takes; words that went are left out, or unknown.

    Args:
        kept: the part of the vocabulary that stays, in (0, 1].
        by: what scores words, a name of `secateur.vocabulary.WORD_SCORES`.
        n_rounds: how many times to score, each time without the words that are gone by then.
        seed: where the score draws.
    Raises:
        ConfigError: a part outside (0, 1], or fewer than one round.
        RegistryError: an unknown score.

    >>> Words(kept=0.25).by
    'kl'
    """

    name: ClassVar[str] = "words"
    accepts: ClassVar[frozenset[str]] = frozenset({"masked", "factored", "quantized", "input-quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset()
    needs_labels: ClassVar[bool] = False

    kept: float = 0.5
    by: str = "kl"
    n_rounds: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.kept <= 1 or self.n_rounds < 1:
            raise ConfigError(f"kept={self.kept} must lie in (0, 1], n_rounds={self.n_rounds} be at least 1.")
        WORD_SCORES[self.by]  # an unknown name is an error

    def run(self, model: nn.Module, context: Context) -> Done:
        """Choose words, cut a copy, and compare it with the model on samples without the words that went.

        Raises:
            ConfigError: words are chosen already, or samples are no words.
            PlanError: the model reads them in several places, or nowhere.
            VerifyError: the smaller model computes something else.
        """
        if any(isinstance(module, Reader) for module in model.modules()):
            raise ConfigError("The words that this model reads are chosen already. Take one step `words` alone.")
        x = _samples(context)
        kind = "inputs" if x.is_floating_point() else "vocabulary"
        sizes = [group.size for group in trace(model, x[:2]).groups if group.kind == kind]
        if len(sizes) != 1:
            raise PlanError(f"{type(model).__name__} reads words in {len(sizes)} places, not in one.")
        n = max(1, round(self.kept * sizes[0]))
        plan, keep = plan_words(
            model, context.calibration(), sizes[0], n, self.by, n_rounds=self.n_rounds, seed=self.seed
        )
        edit = Reading(plan, keep, sizes[0], x.is_floating_point())
        small = edit.replay(model).eval()
        _prove(model, small, x, edit)
        return Done(small, edit, notes=(f"reads {len(keep)} of {sizes[0]} words",), facts={"keep": list(keep)})


def _samples(context: Context) -> Tensor:
    x = next((inputs_of(batch) for batch in context.calibration()), None)
    if not isinstance(x, Tensor) or x.dim() != 2:
        found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ConfigError(f"Samples are {found}. Words are the columns of (B, V) floats, or (B, T) token numbers.")
    return x


def _prove(model: nn.Module, small: nn.Module, x: Tensor, edit: Reading) -> None:
    """The law: what the smaller model gives is what the model gives without the words that went."""
    is_kept = torch.zeros(edit.n_words, dtype=torch.bool, device=x.device)
    is_kept[list(edit.keep)] = True
    without = x * is_kept if edit.is_columns else torch.where(is_kept[x], x, UNKNOWN)
    with plain_forward(model), plain_forward(small):
        pairs = list(zip(tensors_in(model(without)), tensors_in(small(x)), strict=True))
    for expected, found in pairs:
        difference = float((expected - found).abs().max())
        if difference > TOLERANCE * float(expected.abs().max()):
            raise VerifyError(f"Without the words that went, outputs differ by {difference:.2e}. Nothing was changed.")
