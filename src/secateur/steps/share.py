"""The step that lets weights share values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from secateur.coding import Mask, attach_, codable, codings_of
from secateur.coding.entropy import entropy_bits
from secateur.criteria import collect_squared_gradients
from secateur.errors import ConfigError
from secateur.sharing.clusters import MAX_VALUES, fit_lines, fit_values, nearest_lines, nearest_values
from secateur.sharing.codebook import Codebook
from secateur.sharing.edit import Codebooks
from secateur.steps.base import STEPS, Context, Done
from secateur.surgery import copy_model


@STEPS.register("share")
@dataclass(frozen=True, kw_only=True)
class Share:
    """Few values for many weights: k-means codebooks, which fine-tuning moves as a whole. Zeros stay zero.

    Args:
        n_values: values of a codebook, beside zero.
        is_kernel: share the kernels of convolutions instead, each up to a scale of its own.
        is_global: one codebook for all weights (for all kernels of one shape), beside a scale for each weight.
        is_weighted: errors count by the squared gradients of the loss, which needs labels; for single weights.
        only, ignore: fnmatch patterns on keys such as "layer1.0.conv1.weight": what is shared, and what of that is not.
        seed: of the kernels that lines start at; None takes the recipe's.
    """

    name: ClassVar[str] = "share"
    accepts: ClassVar[frozenset[str]] = frozenset({"masked", "factored", "input-quantized"})
    leaves: ClassVar[frozenset[str]] = frozenset({"shared"})

    n_values: int = 16
    is_kernel: bool = False
    is_global: bool = False
    is_weighted: bool = False
    only: tuple[str, ...] = ("*",)
    ignore: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.n_values <= MAX_VALUES:
            raise ConfigError(f"n_values={self.n_values} is outside [1, {MAX_VALUES}].")
        if self.is_kernel and self.is_weighted:
            raise ConfigError("Kernels are compared as a whole, so is_weighted goes with is_kernel=False.")

    @property
    def needs_labels(self) -> bool:
        """True for errors that count by gradients."""
        return self.is_weighted

    def run(self, model: nn.Module, context: Context) -> Done:
        """Put codebooks on the weights of a copy.

        Raises:
            ConfigError: it is weighted, and there are no labels.
        """
        made = copy_model(model).eval()
        weights, skipped = codable(made)
        masked = {key for key, stack in codings_of(made).items() if any(isinstance(c, Mask) for c in stack)}
        coded = {key for key, stack in codings_of(made).items() if not all(isinstance(c, Mask) for c in stack)}
        reasons = {key: self._fault(key, w, key in masked, key in coded) for key, w in weights.items()}
        weights = {key: w for key, w in weights.items() if not reasons[key]}
        skipped += tuple((key, reason) for key, reason in reasons.items() if reason)
        curvature = self._curvature(made, weights, context) if weights else {}
        seed = context.seed if self.seed is None else self.seed
        books: dict[str, Codebook] = {}
        lenders: dict[str, str] = {}
        for keys in self._groups(weights):
            group = [weights[key] for key in keys]
            found = _kernels(group, self.n_values, seed) if self.is_kernel else self._values(group, keys, curvature)
            books |= dict(zip(keys, found, strict=True))
            lenders |= dict.fromkeys(keys[1:], keys[0])
        edit = Codebooks.of(books)
        for key, lender in lenders.items():
            books[key].borrow_(books[lender])
        for key, book in books.items():
            attach_(made, key, book)
        facts = {key: _facts(book, weights[key]) for key, book in books.items()}
        if not books:
            return Done(made, None, skipped, ("no weight can share values",))
        return Done(made, Codebooks(edit.weights, lenders), skipped, (), {"weights": facts})

    def _fault(self, key: str, weight: Tensor, is_masked: bool, is_coded: bool) -> str:
        """Why a weight is left alone; empty where it is not."""
        if any(fnmatch(key, p) for p in self.ignore) or not any(fnmatch(key, p) for p in self.only):
            return "protected by `only` or `ignore`"
        if is_coded:
            return "coded already"
        unit = weight[0, 0].numel() if self.is_kernel else 1
        if self.is_kernel and unit == 1:
            return "its kernels are single weights"
        if weight.numel() // unit <= self.n_values:
            return f"it has no more than {self.n_values} {'kernels' if self.is_kernel else 'weights'}"
        if not bool(weight.any()):
            return "all of it is zero"
        kernels = weight.reshape(-1, unit) != 0
        if is_masked and bool((kernels.any(1) != kernels.all(1)).any()):
            return "its mask leaves parts of kernels"
        return ""

    def _groups(self, weights: Mapping[str, Tensor]) -> list[list[str]]:
        """Keys that share one codebook."""
        groups: dict[Any, list[str]] = {}
        for key, weight in weights.items():
            shape = weight.shape[2:] if self.is_kernel else ()
            groups.setdefault((weight.dtype, shape) if self.is_global else key, []).append(key)
        return list(groups.values())

    def _curvature(self, model: nn.Module, weights: Mapping[str, Tensor], context: Context) -> dict[str, Tensor]:
        if not self.is_weighted:
            return {}
        found = collect_squared_gradients(model, context.calibration(), context.label_loss)
        stacked = {key: f"{'.parametrizations.'.join(key.rsplit('.', 1))}.original" for key in weights}
        return {key: found[key if key in found else stacked[key]] for key in weights}

    def _values(
        self, weights: Sequence[Tensor], keys: Sequence[str], curvature: Mapping[str, Tensor]
    ) -> list[Codebook]:
        """One codebook for single weights; of several, each is divided by its standard deviation first."""
        scales = [w.double().square().sum().div((w != 0).sum().clamp(min=1)).sqrt() for w in weights]
        if len(weights) == 1:
            scales = [torch.ones_like(scales[0])]
        flat = [(w.double() / s.clamp(min=1e-300)).flatten() for w, s in zip(weights, scales, strict=True)]
        mass = [s.square() * self._mass(key, x, curvature) for key, x, s in zip(keys, flat, scales, strict=True)]
        x, counts = torch.cat(flat), torch.cat(mass)
        has_zero = bool((x == 0).any())
        values = fit_values(x[x != 0] if has_zero else x, self.n_values, counts[x != 0] if has_zero else counts)
        books = []
        for weight, numbers, scale in zip(weights, flat, scales, strict=True):
            codes = nearest_values(numbers, values)
            codes = torch.where(numbers == 0, 0, codes + 1) if has_zero else codes
            one = scale.to(weight.dtype).reshape(1) if len(weights) > 1 else None
            rows = values[:, None].to(weight.dtype)
            books.append(Codebook(rows, codes, tuple(weight.shape), scales=one, has_zero=has_zero))
        return books

    def _mass(self, key: str, x: Tensor, curvature: Mapping[str, Tensor]) -> Tensor:
        """How much each weight counts; what the data does not touch still counts a little."""
        if key not in curvature:
            return torch.ones_like(x)
        found = curvature[key].double().flatten()
        return found + max(1e-3 * float(found.mean()), torch.finfo(found.dtype).tiny)


def _kernels(weights: Sequence[Tensor], n_values: int, seed: int) -> list[Codebook]:
    """One codebook of directions for the kernels of several convolutions."""
    unit = weights[0][0, 0].numel()
    flat = [w.reshape(-1, unit).double() for w in weights]
    together = torch.cat(flat)
    has_zero = bool((together == 0).all(1).any())
    lines = fit_lines(together[(together != 0).any(1)], n_values, seed=seed)
    books = []
    for weight, vectors in zip(weights, flat, strict=True):
        codes = nearest_lines(vectors, lines)
        scales = (vectors * lines[codes]).sum(1).to(weight.dtype)
        codes = torch.where((vectors == 0).all(1), 0, codes + 1) if has_zero else codes
        rows = lines.to(weight.dtype)
        books.append(Codebook(rows, codes, tuple(weight.shape), scales=scales, has_zero=has_zero))
    return books


def _facts(book: Codebook, weight: Tensor) -> dict[str, Any]:
    """What is lost, relative to the squared weights, and what a weight takes, without the codebook."""
    with torch.no_grad():
        lost = (book(weight) - weight).double().square().sum() / weight.double().square().sum().clamp(min=1e-300)
    bits = entropy_bits(book.codes) + len(book.scales) * weight.element_size() * 8
    return {"error": float(lost), "bits_per_weight": bits / weight.numel()}
