"""The scan: one forward per batch, group and level, with the dropped units out of every sum."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur._version import __version__
from secateur.allocate import ErrorCurve
from secateur.allocate.curves import ranked
from secateur.criteria.gradients import Loss, like_parameters
from secateur.criteria.kl import kl_divergence, predictions
from secateur.criteria.reading import run_along
from secateur.criteria.samples import inputs_of, split
from secateur.criteria.sensitivity import SensitivityScan
from secateur.dims.algebra import Leaf
from secateur.errors import ConfigError
from secateur.forward import plain_forward
from secateur.graph import Graph, trace
from secateur.law import Law, Sampler
from secateur.sensitivity.found import Scanned, Sensitivity, read_sensitivity, write_sensitivity
from secateur.tensors import distinct, named_tensors

log = logging.getLogger("secateur")


def scan_sensitivity(
    model: nn.Module,
    scores: Mapping[str, Tensor | ErrorCurve],
    batches: Iterable[Any],
    *,
    levels: Sequence[float] = SensitivityScan().levels,
    loss: Loss | None = None,
    cache: Path | None = None,
) -> Sensitivity:
    """Measure how the loss rises when each group alone keeps its best units, at each level.

    Args:
        model: the dense model; it is not changed.
        scores: by group, as `score_groups` gives them; they say which units each level keeps.
        batches: inputs; with labels where a loss is given.
        levels: fractions kept, each in (0, 1); counts are rounded, and at least 1.
        loss: of outputs and labels, a mean over the batch. None takes the KL divergence of the predictions from those
            of the dense model, for which no labels are needed.
        cache: a folder. A scan of the same weights, operators, order of units, data, levels and loss (by its name) is
            read from it, or written into it.
    Raises:
        ConfigError: a level out of range, no batch, or no labels.
        CaptureError: the forward fails, or takes another path on real data.
        FileError: the cache can't be written, or holds something else under that name.
    """
    data = list(batches)
    if not data:
        raise ConfigError("There is no batch to run the model on. Pass batches anew: a generator is read only once.")
    for level in levels:
        if not 0 < level < 1:
            raise ConfigError(f"The level {level} is outside (0, 1). It is the fraction of a group that is kept.")
    graph = trace(model, inputs_of(data[0]))
    if cache is None:
        return _scan(model, graph, scores, data, levels, loss)
    path = cache / f"sensitivity-{_content(model, graph, scores, data, levels, loss)}.json"
    if path.exists():
        return read_sensitivity(path)
    found = _scan(model, graph, scores, data, levels, loss)
    write_sensitivity(found, path)
    return found


def _scan(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Tensor | ErrorCurve],
    data: Sequence[Any],
    levels: Sequence[float],
    loss: Loss | None,
) -> Sensitivity:
    leaves = {group.name: group.leaf for group in graph.groups}
    measure = _Loss(model, graph, data, loss)
    dense = measure({})
    groups = {}
    for at, (name, values) in enumerate(scores.items()):
        log.info("sensitivity of group %d of %d", at + 1, len(scores))
        _, order = ranked(values)
        kept = sorted({max(1, round(level * len(order))) for level in levels} - {len(order)})
        rise = [measure({leaves[name]: order[:k].sort().values}) - dense for k in kept]
        groups[name] = Scanned(tuple(order.tolist()), tuple(kept), tuple(rise))
    return Sensitivity(dense, groups)


class _Loss:
    """The mean loss over batches of a model of which only some units are kept."""

    def __init__(self, model: nn.Module, graph: Graph, data: Sequence[Any], loss: Loss | None) -> None:
        self.model = model
        self.graph = graph
        self.loss = loss
        self.data = [split(batch, i) if loss is not None else (inputs_of(batch), None) for i, batch in enumerate(data)]
        self.dense = [predictions(self._outputs(inputs, {})) for inputs, _ in self.data] if loss is None else []

    def __call__(self, keep: dict[Leaf, Tensor]) -> float:
        total, n_samples = 0.0, 0
        for index, (inputs, labels) in enumerate(self.data):
            outputs = self._outputs(inputs, keep)
            if self.loss is None:
                n_here = len(self.dense[index])
                value = kl_divergence(self.dense[index], predictions(outputs)) / n_here
            else:
                n_here = len(labels) if isinstance(labels, Tensor) and labels.dim() else 1
                value = float(self.loss(outputs, like_parameters(self.model, labels)))
            total, n_samples = total + n_here * value, n_samples + n_here
        return total / n_samples

    def _outputs(self, inputs: Any, keep: dict[Leaf, Tensor]) -> Any:
        with plain_forward(self.model):
            return run_along(self.model, inputs, Law(self.graph, keep, {}, Sampler()))


def _content(
    model: nn.Module,
    graph: Graph,
    scores: Mapping[str, Tensor | ErrorCurve],
    data: Sequence[Any],
    levels: Sequence[float],
    loss: Loss | None,
) -> str:
    """Hash everything that the result depends on; of a loss, its name."""
    digest = hashlib.sha256(str(graph.trace).encode())
    for key, tensor in distinct(named_tensors(model)).items():
        _add(digest, key, tensor)
    for name, values in scores.items():
        _add(digest, name, ranked(values)[1])
    for batch in data:
        for leaf in pytree.tree_leaves(batch):
            _add(digest, "data", leaf) if isinstance(leaf, Tensor) else digest.update(repr(leaf).encode())
    of_loss = None if loss is None else f"{getattr(loss, '__module__', '')}.{getattr(loss, '__qualname__', repr(loss))}"
    digest.update(repr((tuple(levels), of_loss, __version__)).encode())
    return digest.hexdigest()[:32]


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
