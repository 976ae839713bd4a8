"""Rows of one technique over folds and seeds, as one line each; what is best, and what nothing beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

from secateur.compare.rows import Row
from secateur.compare.statistics import corrected_t_test, holm
from secateur.compare.techniques import DENSE, RANDOM, SCRATCH

COSTS = ("macs", "size_bytes", "latency_ms")
"""What quality is weighed against."""
QUALITIES = (
    *("accuracy", "precision", "recall", "f1"),
    *("adjusted_rand", "nmi", "purity", "silhouette", "log_likelihood"),
)
"""Measures on the test part; a task has some of them."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One technique on one model: means over folds and seeds, with standard deviations. None: not carried out."""

    model: str
    pruning: str
    quantization: str
    budget: float
    measure: str
    reason: str = ""  # why it was not carried out, on the first fold that it was not
    n: int = 0  # folds times seeds
    train: float | None = None
    train_std: float | None = None
    val: float | None = None
    val_std: float | None = None
    val_loss: float | None = None
    test: float | None = None
    test_std: float | None = None
    qualities: dict[str, tuple[float, float]] = field(default_factory=dict)  # of QUALITIES: mean, standard deviation
    gap: float | None = None
    gap_std: float | None = None
    difference: float | None = None  # of `test`, from dense
    p: float | None = None  # of that; see `corrected_t_test`
    p_holm: float | None = None  # the same, corrected for the number of lines that are compared with dense
    params: float | None = None
    macs: float | None = None
    macs_std: float | None = None
    size_bytes: float | None = None
    size_bytes_std: float | None = None
    latency_ms: float | None = None
    latency_ms_std: float | None = None
    speedup: float | None = None
    speedup_std: float | None = None
    seconds: float | None = None
    seconds_std: float | None = None
    is_best: bool = False  # of its model and budget: highest `val`, then lowest `val_loss`, then fewest bytes
    pareto: tuple[str, ...] = ()  # of COSTS: no other line of the model has as good a `test` for less

    @property
    def is_dense(self) -> bool:
        """True for what the others are compared with."""
        return (self.pruning, self.quantization) == (DENSE, DENSE)

    @property
    def technique(self) -> str:
        """What was done, in a few words."""
        if self.is_dense:
            return "dense"
        pruning = "" if self.pruning == DENSE else f"{self.pruning} {self.budget:g}"
        quantization = "" if self.quantization == DENSE else self.quantization
        return " + ".join(filter(None, (pruning, quantization)))


def summarise(rows: Sequence[Row]) -> list[Line]:
    """One line per technique and model, in the order of the rows. A technique counts where every fold has numbers."""
    groups: dict[tuple[str, str, str, float], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model, row.pruning, row.quantization, row.budget), []).append(row)
    dense = {(r.model, r.fold, r.seed): r for r in rows if (r.pruning, r.quantization) == (DENSE, DENSE)}
    lines = [_line(group, [dense[row.model, row.fold, row.seed] for row in group]) for group in groups.values()]
    tested = [i for i, line in enumerate(lines) if line.p is not None]
    for i, p in zip(tested, holm([lines[i].p or 0.0 for i in tested]), strict=True):
        lines[i] = replace(lines[i], p_holm=p)
    return _marked(lines)


def highlights(lines: Sequence[Line]) -> list[Line]:
    """Of one model: the dense network; then for each budget its best line, and random pruning and training from scratch
    without quantization beside it.
    """
    done = [line for line in lines if line.n]
    baselines = (RANDOM, SCRATCH)
    found = [line for line in done if line.is_dense]
    for budget in sorted({line.budget for line in done if line.budget < 1}, reverse=True):
        of_budget = [line for line in done if line.budget == budget]
        found += [line for line in of_budget if line.is_best]
        found += [
            line for line in of_budget if line.pruning in baselines and line.quantization == DENSE and not line.is_best
        ]
    return found


def left_out(lines: Sequence[Line]) -> dict[str, list[Line]]:
    """The lines that were not carried out, by their reason."""
    found: dict[str, list[Line]] = {}
    for line in lines:
        if line.reason:
            found.setdefault(line.reason, []).append(line)
    return found


def pareto_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Of (cost, quality): which no other point beats, with no more cost and no less quality, and one of both better.

    >>> pareto_front([(1.0, 0.5), (2.0, 0.9), (3.0, 0.9)])
    [True, True, False]
    """
    return [
        not any(c <= cost and q >= quality and (c, q) != (cost, quality) for c, q in points) for cost, quality in points
    ]


def _line(rows: Sequence[Row], dense: Sequence[Row]) -> Line:
    first = rows[0]
    line = Line(
        model=first.model,
        pruning=first.pruning,
        quantization=first.quantization,
        budget=first.budget,
        measure=first.measure,
        reason=next((row.reason for row in rows if row.reason), ""),
    )
    if line.reason:
        return line
    mean = {name: fmean(_numbers(rows, name)) for name in _MEANS}
    spread = {f"{name}_std": _spread(_numbers(rows, name)) for name in _MEANS if name != "params"}
    whole = [name for name in QUALITIES if all(getattr(row, name) is not None for row in rows)]
    found = {name: _numbers(rows, name) for name in whole}
    qualities = {name: (fmean(values), _spread(values)) for name, values in found.items()}
    val_loss = None if first.val_loss is None else fmean(_numbers(rows, "val_loss"))
    apart = [a - b for a, b in zip(_numbers(rows, "test"), _numbers(dense, "test"), strict=True)]
    ratio = fmean(_numbers(rows, "test_over_train"))
    p = None if line.is_dense else corrected_t_test(apart, ratio)
    return replace(
        line,
        n=len(rows),
        difference=fmean(apart),
        p=p,
        qualities=qualities,
        val_loss=val_loss,
        **mean,  # type: ignore[arg-type]
        **spread,  # type: ignore[arg-type]
    )


_MEANS = ("train", "val", "test", "gap", "params", *COSTS, "speedup", "seconds")


def _numbers(rows: Sequence[Row], name: str) -> list[float]:
    return [float(getattr(row, name)) for row in rows]


def _spread(values: Sequence[float]) -> float:
    """Sample standard deviation; 0 of one value."""
    return stdev(values) if len(values) > 1 else 0.0


def _marked(lines: Sequence[Line]) -> list[Line]:
    found = list(lines)
    for model in dict.fromkeys(line.model for line in lines):
        of_model = [i for i, line in enumerate(found) if line.model == model and line.n]
        for cost in COSTS:
            front = pareto_front([(getattr(found[i], cost), found[i].test or 0.0) for i in of_model])
            for i, is_there in zip(of_model, front, strict=True):
                if is_there:
                    found[i] = replace(found[i], pareto=(*found[i].pareto, cost))
        for budget in sorted({found[i].budget for i in of_model if found[i].budget < 1}):
            some = [i for i in of_model if found[i].budget == budget]
            best = max(some, key=lambda i: _worth(found[i]))
            found[best] = replace(found[best], is_best=True)
    return found


def _worth(line: Line) -> tuple[float, float, float]:
    """What a budget's best is chosen by; validation parts are small, so that many are equally often right there."""
    return line.val or 0.0, -(line.val_loss or 0.0), -(line.size_bytes or 0.0)
