"""Data: sources, splits, batches. `load_data("digits")` is the embedded default."""

from __future__ import annotations

from secateur.data.arrays import ArrayDataset, DataSplits, channel_statistics
from secateur.data.batches import Batch, batches, forward, labels_of, loader, logits_of, to_device
from secateur.data.csv_table import read_csv
from secateur.data.folder import read_folder
from secateur.data.npz import read_npz
from secateur.data.sources import SOURCES, RawData, ReadConfig, Source, load_data, read_digits
from secateur.data.text import read_text, read_texts
from secateur.data.words import Words, renumbered, split_words

__all__ = [
    "SOURCES",
    "ArrayDataset",
    "Batch",
    "DataSplits",
    "RawData",
    "ReadConfig",
    "Source",
    "Words",
    "batches",
    "channel_statistics",
    "forward",
    "labels_of",
    "load_data",
    "loader",
    "logits_of",
    "read_csv",
    "read_digits",
    "read_folder",
    "read_npz",
    "read_text",
    "read_texts",
    "renumbered",
    "split_words",
    "to_device",
]
