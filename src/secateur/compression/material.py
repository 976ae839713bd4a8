"""From what a user has (a tensor, a loader, a dataset, splits) to what the job needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset, default_collate

from secateur.compression.config import SplitConfig
from secateur.data.arrays import ArrayDataset, DataSplits
from secateur.data.batches import calibration_batches, labels_of, length
from secateur.errors import ConfigError, DataError, GroupError
from secateur.measure.modes import device_of
from secateur.planning import Loss
from secateur.steps import Context
from secateur.tensors import Inputs, tensors_in


@dataclass(frozen=True, kw_only=True)
class Material:
    """Samples to make inputs of, and three sets where they have labels."""

    samples: Dataset[Any]
    train: Dataset[Any] | None = None
    val: Dataset[Any] | None = None
    test: Dataset[Any] | None = None

    def inputs(self, n_samples: int) -> Inputs:
        """Return a batch of model inputs, without labels; samples repeat where there are too few."""
        size = length(self.samples)
        return _without_labels(default_collate([self.samples[i % size] for i in range(n_samples)]))

    @property
    def has_classes(self) -> bool:
        """True where labels are class numbers, one per sample."""
        if self.test is None:
            return False
        y = labels_of(default_collate([self.test[0]]))
        return y.ndim == 1 and not y.is_floating_point()

    def sizes(self) -> dict[str, int]:
        """Return how many samples each set has."""
        parts = {"train": self.train, "val": self.val, "test": self.test}
        return {name: length(part) for name, part in parts.items() if part is not None}


def context_of(
    material: Material, dense: nn.Module, n_calibration: int, seed: int, loss: Loss | None = None
) -> Context:
    """What steps may use: the samples on the dense model's device.

    Args:
        n_calibration: samples that criteria and compensation measure on, at most.
        seed: of their draw.
    """
    device = device_of(dense)

    def inputs(n_samples: int) -> Inputs:
        found: Inputs = pytree.tree_map_only(Tensor, lambda t: t.to(device), material.inputs(n_samples))
        return found

    def calibration() -> Iterator[Any]:
        return calibration_batches(material.train or material.samples, n_calibration, seed=seed, device=device)

    return Context(
        dense=dense,
        inputs=inputs,
        calibration=calibration,
        train=material.train,
        val=material.val,
        loss=loss,
        seed=seed,
    )


def read_material(data: Any, labels: Tensor | None, split: SplitConfig) -> Material:
    """Sort out the forms of data that `compress` takes.

    Raises:
        DataError: there is nothing in it, or something else.
        ConfigError: labels are given beside data that is no tensor.
    """
    if isinstance(data, DataSplits):
        made = Material(samples=data.train, train=data.train, val=data.val, test=data.test)
    else:
        samples = _as_dataset(data, labels)
        length(samples)
        made = _cut(samples, split) if _is_labelled(samples[0]) else Material(samples=samples)
    for tensor in tensors_in(made.inputs(1)):
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise DataError("The first sample holds NaN or Inf. Clean the data before compressing.")
    return made


def check_weights(model: nn.Module) -> None:
    """Raise GroupError where a parameter or buffer holds NaN or Inf; all of them are named."""
    state = (*model.named_parameters(), *model.named_buffers())
    faulty = [key for key, t in state if not t.is_meta and t.is_floating_point() and not t.isfinite().all()]
    if faulty:
        more = f" and {len(faulty) - 4} more" if len(faulty) > 4 else ""
        raise GroupError(
            f"{type(model).__name__} holds NaN or Inf in {', '.join(map(repr, faulty[:4]))}{more}."
            " Repair these weights, or train again, before pruning."
        )


def _as_dataset(data: Any, labels: Tensor | None) -> Dataset[Any]:
    if isinstance(data, Tensor):
        if data.ndim == 0 or len(data) == 0:
            raise DataError(f"The data is a tensor of shape {tuple(data.shape)}, without samples. Pass (N, ...).")
        if labels is not None and labels.shape[:1] != data.shape[:1]:
            raise DataError(f"{len(data)} samples and labels {tuple(labels.shape)} do not fit. Pass one label each.")
        return TensorDataset(data) if labels is None else TensorDataset(data, labels)
    if labels is not None:
        raise ConfigError(f"labels go with a tensor of inputs, but data is a {type(data).__name__} with its own.")
    if isinstance(data, DataLoader):
        if data.collate_fn is default_collate and hasattr(data.dataset, "__len__"):
            return data.dataset
        return _gather(data)
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Iterable) and not isinstance(data, Mapping | str | bytes):
        return _gather(data)
    raise DataError(
        f"data is a {type(data).__name__}. Pass a tensor, a DataLoader or other batches, a Dataset, or DataSplits."
    )


class _DictDataset(Dataset[dict[str, Tensor]]):
    """Named columns of one length."""

    def __init__(self, columns: dict[str, Tensor]) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}


def _gather(batches: Iterable[Any]) -> Dataset[Any]:
    """Put batches into one dataset in memory."""
    found = list(batches)
    if not found:
        raise DataError("The data gave no batches. Check its source; an iterator can be read only once.")
    first = found[0]
    try:
        if isinstance(first, Tensor):
            return TensorDataset(torch.cat(found))
        if isinstance(first, Mapping):
            return _DictDataset({key: torch.cat([batch[key] for batch in found]) for key in first})
        if isinstance(first, tuple | list) and len(first) in (1, 2):
            return TensorDataset(*(torch.cat([batch[i] for batch in found]) for i in range(len(first))))
    except (RuntimeError, TypeError, KeyError, IndexError) as error:
        advice = "All must have one form and one shape; labels of a tensor of inputs go into labels=."
        raise DataError(f"The batches can't be put together: {error}. {advice}") from error
    raise DataError(f"A batch is a {type(first).__name__}. Batches must be x, (x, y), or a dict with 'labels'.")


def _is_labelled(item: Any) -> bool:
    return "labels" in item if isinstance(item, Mapping) else isinstance(item, tuple | list) and len(item) == 2


def _without_labels(batch: Any) -> Inputs:
    if isinstance(batch, Mapping):
        return {key: value for key, value in batch.items() if key != "labels"}
    x: Inputs = batch[0] if isinstance(batch, tuple | list) else batch
    return x


def _cut(samples: Dataset[Any], split: SplitConfig) -> Material:
    n = length(samples)
    n_test, n_val = round(split.test_fraction * n), round(split.val_fraction * n)
    if min(n_test, n_val, n - n_test - n_val) < 1:
        raise DataError(f"{n} labelled samples are too few to cut off {n_val} to choose by and {n_test} to report on.")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(split.seed)).tolist()
    parts = order[n_test + n_val :], order[n_test : n_test + n_val], order[:n_test]
    train, val, test = (samples.subset(p) if isinstance(samples, ArrayDataset) else Subset(samples, p) for p in parts)
    return Material(samples=train, train=train, val=val, test=test)
