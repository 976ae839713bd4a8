"""What units do on data: statistics of the values that are read of each, in one pass, with no batch kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from secateur.criteria.reading import Readings, argument, sample_count
from secateur.criteria.samples import inputs_of
from secateur.errors import ConfigError
from secateur.observe import observe
from secateur.record import Op

if TYPE_CHECKING:
    from secateur.dims.groups import Group
    from secateur.tensors import Inputs


@dataclass(frozen=True, eq=False)
class Activity:
    """Statistics of the values x of each unit, over samples, positions and all places where an operator sums over it.

    Args:
        mean_abs: (size,) float32, mean of |x|.
        nonzero: (size,) float32, the fraction of values that are not 0.
        rms: (size,) float32, square root of the mean of x^2.
    """

    mean_abs: Tensor
    nonzero: Tensor
    rms: Tensor


def collect_activity(model: nn.Module, groups: Iterable[Group], batches: Iterable[Any]) -> dict[str, Activity]:
    """Run the model on batches and return the `Activity` of each group by name; groups that nothing reads are left out.

    What is read is the input of the next layers: after the activation function, after a norm that precedes
    the reader. Where one tensor is read by several operators it counts once.

    Args:
        groups: of a trace of this model. They are found again by name in the trace of the first batch.
        batches: inputs, with labels or without; see `secateur.criteria.samples.inputs_of`.
    Raises:
        ConfigError: there is no batch.
        CaptureError: the forward fails, or takes another path on some batch.
    """

    def sums(x: Tensor) -> Tensor:
        flat = x.movedim(1, 0).flatten(1)
        n = torch.full_like(flat[:, 0], flat.shape[1], dtype=torch.float64)
        rows = (flat.abs().sum(1), flat.count_nonzero(1), flat.square().sum(1), n)
        return torch.stack([row.double() for row in rows]).cpu()

    found = {}
    for name, (total, nonzero, square, n) in _accumulate(model, groups, batches, sums).items():
        found[name] = Activity((total / n).float(), (nonzero / n).float(), (square / n).sqrt().float())
    return found


def collect_ranks(model: nn.Module, groups: Iterable[Group], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Run the model on batches and return the mean rank of each unit's maps, as a fraction of full rank.

    rank[c] = mean over samples n and tensors that are read of rank(x[n, c]) / min(h, w), with x[n, c] an (h, w) matrix:
    the first axis of positions by all others. Of heads, h runs over their features and w over positions. A
    group that is read only without positions (one number per sample and unit) has no maps and is left out.

    Returns:
        by group, (size,) float32 in [0, 1]. Arguments and errors are those of `collect_activity`.
    """

    def sums(x: Tensor) -> Tensor | None:
        shape = [n for n in x.shape[2:] if n > 1]
        if len(shape) < 2:
            return None
        maps = x.reshape(*x.shape[:2], shape[0], -1)
        ranks = torch.linalg.matrix_rank(maps.float()).double() / min(maps.shape[2:])
        return torch.stack([ranks.sum(0), torch.full_like(ranks[0], len(ranks))]).cpu()

    return {name: (total / n).float() for name, (total, n) in _accumulate(model, groups, batches, sums).items()}


def collect_products(model: nn.Module, groups: Iterable[Group], batches: Iterable[Any]) -> dict[str, Tensor]:
    """Run the model on batches and return inner products of units: P[c, d] = sum over all values of x[c] * x[d].

    Returns:
        by group, (size, size) float64. Arguments and errors are those of `collect_activity`.
    """

    def sums(x: Tensor) -> Tensor:
        flat = x.movedim(1, 0).flatten(1).float()
        return (flat @ flat.T).double().cpu()

    return _accumulate(model, groups, batches, sums)


def _accumulate(
    model: nn.Module, groups: Iterable[Group], batches: Iterable[Any], sums: Callable[[Tensor], Tensor | None]
) -> dict[str, Tensor]:
    """Add up `sums` of (samples, size, …) values over batches and the tensors that are read, by group."""
    totals: dict[str, Tensor] = {}
    for inputs, readings in followed(model, groups, batches):
        observe(model, readings.trace, [inputs], _Adder(readings, sample_count(inputs), sums, totals), readings.by_op)
    return totals


class _Adder:
    """Adds to `totals` what `sums` gives of each tensor of one batch, once per group."""

    def __init__(
        self, readings: Readings, n_samples: int, sums: Callable[[Tensor], Tensor | None], totals: dict[str, Tensor]
    ) -> None:
        self.readings = readings
        self.n_samples = n_samples
        self.sums = sums
        self.totals = totals
        self.seen: set[tuple[str, int]] = set()

    def __call__(self, op: Op, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        for reading in self.readings.by_op[op.index]:
            name, key = reading.group, (reading.group, reading.value)
            if key not in self.seen:
                self.seen.add(key)
                added = self.sums(reading.units(argument(reading.position, args, kwargs), self.n_samples))
                if added is not None:
                    self.totals[name] = self.totals[name] + added if name in self.totals else added


def followed(model: nn.Module, groups: Iterable[Group], batches: Iterable[Any]) -> Iterator[tuple[Inputs, Readings]]:
    """Yield the inputs of each batch with the readings of the groups, traced once.

    A batch of one sample has no axis of samples to tell apart, so the first larger one is traced again.
    """
    wanted, readings = list(groups), None
    for batch in batches:
        inputs = inputs_of(batch)
        if readings is None or readings.n_samples == 1 < sample_count(inputs):
            readings = Readings(model, wanted, inputs)
        yield inputs, readings
    if readings is None:
        raise ConfigError("There is no batch to run the model on. Pass batches anew: a generator is read only once.")
