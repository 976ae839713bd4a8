"""Language models with half of their weights at zero, without training: perplexity by method, ours beside a plain one.

Models and text are those of `language_models.py`; the first test windows are measured on, and the seed draws those to
calibrate on. All linear layers inside the decoder layers become sparse; embeddings and head stay. The plain references
follow the papers in the most direct way, on their own loop over decoder layers, and share no code with the package.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from language_models import Batch, Logits, arguments, draw, load, perplexity
from rows import machine, read_rows, write_rows

Prune = Callable[[Tensor, Tensor, tuple[int, int] | None], Tensor]
"""Of a weight (out, in), H = sum of x x^T over its inputs, and (n, m) or None: the sparse weight."""


def lowest(scores: Tensor, pattern: tuple[int, int] | None, *, per_row: bool) -> Tensor:
    """True for the half with the lowest scores: of the matrix, of each row, or m - n of each m in a row.

    Equal scores keep the lower index, which matters for weights that come from a file of 4 bits each.
    """
    if pattern is not None:
        n, m = pattern
        rows, drop = scores.reshape(-1, m), m - n
    else:
        rows = scores if per_row else scores.reshape(1, -1)
        drop = rows.shape[1] // 2
    order = rows.argsort(dim=1, descending=True, stable=True)[:, rows.shape[1] - drop :]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, order, True).reshape(scores.shape)


def plain_magnitude(weight: Tensor, h: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """Han et al. 2015: the least |w| of a layer."""
    return weight.masked_fill(lowest(weight.abs(), pattern, per_row=False), 0)


def plain_wanda(weight: Tensor, h: Tensor, pattern: tuple[int, int] | None) -> Tensor:
    """Sun et al. 2024: the least |w| |x| of each output."""
    return weight.masked_fill(lowest(weight.abs() * h.diagonal().sqrt(), pattern, per_row=True), 0)


def plain_sparsegpt(weight: Tensor, h: Tensor, pattern: tuple[int, int] | None, size: int = 128) -> Tensor:
    """Frantar and Alistarh 2023, algorithm 1: U with H^-1 = U^T U, blocks of 128 columns, column after column.

    The inverse is taken in float64: in float32 it is not positive definite for some layers.
    """
    w = weight.clone()
    dead = h.diagonal() == 0
    w[:, dead] = 0
    damped = h.double() + 0.01 * h.diagonal().double().mean() * torch.eye(len(h), dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True).to(w.dtype)
    for start in range(0, w.shape[1], size):
        end = min(start + size, w.shape[1])
        if pattern is None:
            gone = lowest((w[:, start:end] / u.diagonal()[start:end]) ** 2, None, per_row=False)
        else:
            gone = torch.zeros_like(w[:, start:end], dtype=torch.bool)
        errors = torch.zeros_like(w[:, start:end])
        for j in range(start, end):
            if pattern is not None and j % pattern[1] == 0:
                part = slice(j, j + pattern[1])
                gone[:, j - start : j - start + pattern[1]] = lowest(
                    (w[:, part] / u.diagonal()[part]) ** 2, pattern, per_row=True
                )
            zeroed = w[:, j].masked_fill(gone[:, j - start], 0)
            errors[:, j - start] = (w[:, j] - zeroed) / u[j, j]
            w[:, j] = zeroed
            w[:, j + 1 : end] -= errors[:, j - start, None] * u[j, j + 1 : end]
        w[:, end:] -= errors @ u[start:end, end:]
    return w


class _Caught(Exception):
    """Carries the inputs of the first decoder layer."""


def run_plain(model: Logits, batches: list[Batch], prune: Prune, pattern: tuple[int, int] | None) -> nn.Module:
    """A copy whose decoder layers are made sparse one after another, each by what the sparse ones before give."""
    made = copy.deepcopy(model)
    layers = made.model.model.layers
    calls: list[tuple[Tensor, dict[str, Any]]] = []

    def catch(module: nn.Module, args: Any, kwargs: Any) -> None:
        calls.append((args[0], kwargs))
        raise _Caught

    handle = layers[0].register_forward_pre_hook(catch, with_kwargs=True)
    for batch in batches:
        with contextlib.suppress(_Caught):
            made(**batch)
    handle.remove()
    for layer in layers:
        linears = {name: m for name, m in layer.named_modules() if isinstance(m, nn.Linear)}
        grams = {name: torch.zeros(m.in_features, m.in_features) for name, m in linears.items()}

        def gather(name: str, grams: dict[str, Tensor] = grams) -> Callable[..., None]:
            def hook(module: nn.Module, args: Any, out: Any) -> None:
                x = args[0].flatten(0, -2)
                grams[name] += x.T @ x

            return hook

        handles = [m.register_forward_hook(gather(name)) for name, m in linears.items()]
        for hidden, kwargs in calls:
            layer(hidden, **kwargs)
        for handle in handles:
            handle.remove()
        for name, m in linears.items():
            m.weight.data = prune(m.weight.data, grams[name], pattern)
        calls = [(layer(hidden, **kwargs), kwargs) for hidden, kwargs in calls]
    return made


PLAIN: dict[str, Prune] = {"magnitude": plain_magnitude, "wanda": plain_wanda, "sparsegpt": plain_sparsegpt}
PATTERNS: dict[str, tuple[int, int] | None] = {"unstructured": None, "2:4": (2, 4)}


def sparsity_of(model: nn.Module) -> float:
    """The fraction of zeros in the linear layers of the decoder layers."""
    weights = [m.weight for name, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in name]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def run(
    model: Logits, batches: list[Batch], methods: list[str], done: set[tuple[str, str]]
) -> Iterator[tuple[dict[str, Any], nn.Module]]:
    """Every method with every pattern that is not done, ours and plain."""
    for pattern, nm in PATTERNS.items():
        for method in methods:
            if (method, pattern) not in done:
                start = time.perf_counter()
                step = secateur.Sparsify(score=method, pattern=pattern, ignore=("*lm_head",))
                made = secateur.sparsify(model, batches, step).model
                yield {"method": method, "pattern": pattern, "seconds": time.perf_counter() - start}, made
            if ((plain := f"{method}, plain"), pattern) not in done:
                start = time.perf_counter()
                made = run_plain(model, batches if method != "magnitude" else batches[:1], PLAIN[method], nm)
                yield {"method": plain, "pattern": pattern, "seconds": time.perf_counter() - start}, made


def main() -> None:
    args = arguments(__doc__, PLAIN, samples=64, length=512, windows=128).parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    model, pool, test = load(args)
    test = test[: args.windows]
    base = {k: v for k, v in vars(args).items() if k in ("model", "samples", "length", "threads")}
    base |= {"length": pool.shape[1], "windows": len(test), "machine": machine("transformers")}
    settings = [key for key in base if key != "machine"]
    known = read_rows(f"llm_sparsity_{args.model}")
    rows = [row for row in known if all(row[key] == base[key] for key in settings)]  # a broken run goes on
    if not rows:
        rows = [{**base, "method": "dense", "pattern": None, "sparsity": 0.0, **perplexity(model, test)}]
    for seed in args.seeds:
        batches = draw(pool, args, seed)
        done = {(row["method"], row["pattern"]) for row in rows if row.get("seed") == seed}
        for row, made in run(model, batches, args.methods, done):
            measured = {"sparsity": sparsity_of(made), **perplexity(made, test)}
            rows.append({**base, "seed": seed, **row, **measured})
            print({k: v for k, v in rows[-1].items() if k not in base}, flush=True)
            write_rows(
                f"llm_sparsity_{args.model}", rows, ("method", "pattern", "seed", "sparsity", "perplexity", "seconds")
            )


if __name__ == "__main__":
    main()
