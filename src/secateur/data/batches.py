"""Batches, as models take them: an (x, y) pair, or a dict of keyword inputs with "labels"."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from secateur.data.arrays import ArrayDataset
from secateur.errors import DataError
from secateur.tensors import wide

Batch = tuple[Tensor, Tensor] | list[Tensor] | dict[str, Tensor]


class _WholeBatches(Dataset[Any]):
    """Hands the loader batches that are stacked already, so that nothing is cut up to be stacked again."""

    def __init__(self, data: ArrayDataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: list[int]) -> Any:
        return self.data.fetch(indices)


def _as_is(batch: Any) -> Any:
    return batch


def loader(data: Dataset[Any], batch_sampler: Sampler[list[int]] | Sequence[list[int]]) -> DataLoader[Any]:
    """Return a loader over the given batches of indices; an `ArrayDataset` is fetched a batch at a time.

    The loader has a generator of its own, so iterating leaves torch's global one untouched.
    """
    generator = torch.Generator().manual_seed(0)
    sampler = cast(Sampler[list[int]], batch_sampler)
    if isinstance(data, ArrayDataset):
        return DataLoader(_WholeBatches(data), batch_sampler=sampler, collate_fn=_as_is, generator=generator)
    return DataLoader(data, batch_sampler=sampler, collate_fn=default_collate, generator=generator)


def batches(data: Dataset[Any], *, batch_size: int = 256, device: torch.device | None = None) -> Iterator[Batch]:
    """Yield the samples in order, `batch_size` at a time, on the given device.

    Raises:
        DataError: the data is empty, or a batch is neither (x, y) nor a dict with "labels".

    >>> data = ArrayDataset(torch.zeros(5, 2), torch.arange(5))
    >>> [y.tolist() for x, y in batches(data, batch_size=2)]
    [[0, 1], [2, 3], [4]]
    """
    n_samples = length(data)
    order = [list(range(at, min(at + batch_size, n_samples))) for at in range(0, n_samples, batch_size)]
    for batch in loader(data, order):
        check_batch(batch)
        yield to_device(batch, device)


def calibration_batches(
    data: Dataset[Any], n_samples: int, *, seed: int, batch_size: int = 64, device: torch.device | None = None
) -> Iterator[Any]:
    """Yield at most `n_samples` samples, drawn without repeats, in batches; with labels or without, as they come.

    >>> data = ArrayDataset(torch.zeros(5, 2), torch.arange(5))
    >>> [x.shape for x, y in calibration_batches(data, 3, seed=0, batch_size=2)]
    [torch.Size([2, 2]), torch.Size([1, 2])]
    """
    drawn = torch.randperm(length(data), generator=torch.Generator().manual_seed(seed))[:n_samples]
    for batch in loader(data, [part.tolist() for part in torch.split(drawn, batch_size)]):
        yield pytree.tree_map_only(Tensor, lambda t: t.to(device), batch)


def length(data: Dataset[Any]) -> int:
    """Return how many samples there are; none, or a dataset that cannot tell, is a `DataError`."""
    if not isinstance(data, Sized):
        raise DataError(f"{type(data).__name__} has no length. Pass a map-style dataset, with __len__ and __getitem__.")
    if (n_samples := len(data)) == 0:
        raise DataError(f"The {type(data).__name__} holds no samples. Check its source and the split fractions.")
    return n_samples


def check_batch(batch: object) -> None:
    """Raise `DataError` unless the batch is (x, y) or a dict with "labels"."""
    if isinstance(batch, Mapping):
        if "labels" not in batch:
            raise DataError(f"A batch has the keys {sorted(batch)}, but no 'labels'. Name the targets 'labels'.")
    elif not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise DataError(f"A batch is a {type(batch).__name__}. Items must be (x, y), or a dict with 'labels'.")


def labels_of(batch: Batch) -> Tensor:
    """Return the targets of a batch."""
    return batch["labels"] if isinstance(batch, Mapping) else batch[1]


def to_device(batch: Batch, device: torch.device | None) -> Batch:
    """Return the batch with its tensors on the device; None leaves them where they are."""
    if device is None:
        return batch
    if isinstance(batch, Mapping):
        return {key: value.to(device) for key, value in batch.items()}
    return batch[0].to(device), batch[1].to(device)


def forward(model: nn.Module, batch: Batch, *, with_labels: bool = False) -> Any:
    """Run the model on the inputs of a batch: model(x), or model(**inputs).

    Args:
        with_labels: pass "labels" too, to a model of keyword inputs whose forward names them.
    """
    if not isinstance(batch, Mapping):
        return model(batch[0])
    passes = with_labels and takes_labels(model)
    return model(**{key: value for key, value in batch.items() if passes or key != "labels"})


_WRAPPERS = {"DistributedDataParallel": "module", "OptimizedModule": "_orig_mod"}  # type to where its model is


def takes_labels(model: nn.Module) -> bool:
    """Say whether the model's forward has an argument called `labels`, as Hugging Face's heads do."""
    while (name := _WRAPPERS.get(type(model).__name__)) is not None:
        model = getattr(model, name)
    return "labels" in inspect.signature(model.forward).parameters


def logits_of(outputs: Any) -> Tensor:
    """Return a model's logits in float32 at least: its output tensor, `.logits`, "logits", or the first of a tuple.

    Raises:
        DataError: there are none.
    """
    found = getattr(outputs, "logits", None)
    if found is None and isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif found is None and isinstance(outputs, tuple | list) and outputs:
        found = outputs[0]
    elif found is None:
        found = outputs
    if not isinstance(found, Tensor):
        raise DataError(
            f"The model gave a {type(outputs).__name__} without logits. Wrap it so that it returns a tensor or .logits."
        )
    return wide(found) if found.is_floating_point() else found
