"""The dense digits CNN that benchmarks start from, trained in seconds."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from secateur.data import DataSplits, load_data
from secateur.models import digits_cnn
from secateur.recipe import TRAIN
from secateur.train import fit_


def trained(seed: int) -> tuple[nn.Module, DataSplits]:
    """The network in eval mode, and its data; the seed is that of weights, batches and the split."""
    splits = load_data("digits", seed=seed)
    torch.manual_seed(seed)
    dense = digits_cnn()
    fit_(dense, splits.train, splits.val, dataclasses.replace(TRAIN, seed=seed))
    return dense.eval(), splits
