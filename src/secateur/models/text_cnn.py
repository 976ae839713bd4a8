"""A convolutional network over words.

Source: Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014, section 2. Differs: the word
vectors are learned from nothing, and a batch norm stands before the last layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.data.words import PAD
from secateur.errors import ConfigError
from secateur.models.catalog import MODELS

INITIAL = 0.1  # largest value in a fresh word vector


class TextCNN(nn.Module):
    """Embedding, convolutions of several widths side by side, the largest value of each over the text, norm, linear.

    Args:
        n_words: size of the vocabulary; number 0 is padding.
        n_classes: width of the output.
        embed_dim: width of a word's vector.
        n_channels: of each convolution.
        kernel_sizes: widths of the convolutions, in words.
        dropout: part of the pooled values that is dropped in training.
    Takes (B, T) int64 token numbers, gives (B, n_classes) logits.
    """

    def __init__(
        self,
        n_words: int,
        n_classes: int = 2,
        embed_dim: int = 64,
        n_channels: int = 64,
        kernel_sizes: Sequence[int] = (3, 4, 5),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if min(n_words, n_classes, embed_dim, n_channels, len(kernel_sizes), *kernel_sizes) < 1:
            raise ConfigError(
                f"n_words={n_words}, n_classes={n_classes}, embed_dim={embed_dim}, n_channels={n_channels},"
                f" kernel_sizes={tuple(kernel_sizes)}: every number must be at least 1."
            )
        self.embedding = nn.Embedding(n_words, embed_dim, padding_idx=PAD)
        with torch.no_grad():  # smaller than torch's normal ones, which drown what few texts can teach
            self.embedding.weight[PAD + 1 :].uniform_(-INITIAL, INITIAL)
        self.convs = nn.ModuleList(nn.Conv1d(embed_dim, n_channels, k, padding=k // 2) for k in kernel_sizes)
        self.norm = nn.BatchNorm1d(n_channels * len(kernel_sizes))
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(n_channels * len(kernel_sizes), n_classes)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids).transpose(1, 2)  # (B, D, T)
        pooled = [conv(x).relu().amax(2) for conv in self.convs]
        out: Tensor = self.linear(self.dropout(self.norm(torch.cat(pooled, 1))))
        return out


@MODELS.register("text_cnn")
def text_cnn(
    n_words: int = 10_000,
    n_classes: int = 2,
    embed_dim: int = 64,
    n_channels: int = 64,
    kernel_sizes: Sequence[int] = (3, 4, 5),
    dropout: float = 0.5,
) -> TextCNN:
    """Build a `TextCNN` with fresh weights.

    >>> text_cnn(100, n_channels=8).eval()(torch.ones(2, 12, dtype=torch.long)).shape
    torch.Size([2, 2])
    """
    return TextCNN(n_words, n_classes, embed_dim, n_channels, kernel_sizes, dropout)
