"""Texts as token numbers: what a word is, which words are known, and padding."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.errors import DataError

PAD, UNKNOWN = 0, 1
SPECIAL = ("<pad>", "<unknown>")
"""Numbers that stand for no word, and for a word that is not known; and how they are written."""

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+(?:'[^\W\u3400-\u9fff]+)*")


def split_words(text: str) -> list[str]:
    """Lower-case words; a Chinese character is a word by itself.

    >>> split_words("Don't panic: 42!"), split_words("AI 时代")
    (["don't", 'panic', '42'], ['ai', '时', '代'])
    """
    return _WORD.findall(text.lower())


@dataclass(frozen=True)
class Words:
    """A vocabulary: `listed[i]` is the word with number i; numbers 0 and 1 are `SPECIAL`.

    >>> words = Words.of(["a fig", "a date", "a fig"], max_words=4)
    >>> words.listed, words.encode(["a date, a fig"], length=5)
    (('<pad>', '<unknown>', 'a', 'fig'), tensor([[2, 1, 2, 3, 0]]))
    """

    listed: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.listed[:2] != SPECIAL or len(set(self.listed)) != len(self.listed):
            raise DataError(f"A vocabulary starts with {SPECIAL} and has no word twice; this starts {self.listed[:3]}.")

    def __len__(self) -> int:
        return len(self.listed)

    @classmethod
    def of(cls, texts: Iterable[str], *, max_words: int = 10_000, min_count: int = 1) -> Words:
        """The most frequent words of some texts, most frequent first, ties in order of the alphabet.

        Args:
            max_words: size of the vocabulary, the two special numbers included.
            min_count: rarer words are left out.
        """
        counts = Counter(word for text in texts for word in split_words(text))
        ranked = sorted((word for word, n in counts.items() if n >= min_count), key=lambda word: (-counts[word], word))
        return cls((*SPECIAL, *ranked[: max(0, max_words - len(SPECIAL))]))

    def encode(self, texts: Iterable[str], *, length: int) -> Tensor:
        """Return (N, length) int64: the first `length` words of each text, padded with `PAD`."""
        numbers = {word: i for i, word in enumerate(self.listed)}
        rows = [[numbers.get(word, UNKNOWN) for word in split_words(text)[:length]] for text in texts]
        return torch.tensor([row + [PAD] * (length - len(row)) for row in rows], dtype=torch.long).reshape(-1, length)

    def restrict(self, keep: Sequence[int]) -> Words:
        """The vocabulary of a model whose embedding keeps these rows."""
        return Words(tuple(self.listed[i] for i in keep))


def known_words(ids: Tensor, size: int, max_words: int) -> tuple[int, ...]:
    """Return the sorted numbers of the most frequent words among `ids`, with `SPECIAL`; at most `max_words` of `size`.

    >>> known_words(torch.tensor([[5, 5, 3, 0], [4, 3, 5, 0]]), size=7, max_words=4)
    (0, 1, 3, 5)
    """
    counts = torch.bincount(ids.flatten(), minlength=size)
    counts[PAD] = 0
    ranked = counts.sort(descending=True, stable=True).indices[: int((counts > 0).sum())].tolist()
    n_special = len(SPECIAL)
    chosen = [i for i in ranked if i >= n_special][: max(0, max_words - n_special)]
    return (*range(n_special), *sorted(chosen))


def renumbered(ids: Tensor, keep: Sequence[int], size: int) -> Tensor:
    """Return token numbers for a vocabulary that keeps these numbers of `size`; the others become `UNKNOWN`.

    >>> renumbered(torch.tensor([[4, 3, 2, 0]]), keep=[0, 1, 3], size=5)
    tensor([[1, 2, 1, 0]])
    """
    table = torch.full((size,), UNKNOWN, dtype=ids.dtype, device=ids.device)
    table[list(keep)] = torch.arange(len(keep), dtype=ids.dtype, device=ids.device)
    return table[ids]
