"""Real transformers made smaller without labels: weights solved for again, then a short fit to the dense outputs.

`minilm`: all-MiniLM-L6-v2, sentence embeddings (mean over tokens), at fractions of its encoder's MACs. Measured: mean
cosine to the dense embeddings on SST-2 dev; accuracy of logistic regression on embeddings of unit length (as the model
is used) of SST-2 (train to test) and of AG News (first 6,000 to the other 1,600), the regression fitted anew on each
network's embeddings. Calibration: sentences of SST-2 train and of the first 6,000 of AG News, half and half.
`smollm2`: SmolLM2-135M, at fractions of its decoder layers' parameters. Measured: perplexity of the first windows of
512 tokens of WikiText-2 test. Calibration: windows of its validation text.
`tiny`: any small causal model with `samples.npz` (`ids`): perplexity of the second half, calibration on the first.

All methods may narrow the same groups: those that the elimination has curves for. The others keep equal fractions of
each, and are not compensated. Seeds choose the calibration samples.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

import secateur
from language_models import draw, load, next_token_loss, perplexity
from rows import machine, read_rows, write_rows
from secateur.allocate import ErrorCurve, Lagrangian
from secateur.compensation import CompensateConfig, ReconstructConfig, compensate_
from secateur.criteria import Context, make_criterion, measure, needs_of, score_groups
from secateur.criteria.elimination import Elimination
from secateur.planning import plan_graph
from secateur.repair import repair

PROBE_TOKENS = 128  # longest sentence that is embedded
N_AG_TRAIN = 6000
SETTINGS = (
    *("model", "samples", "length", "batch", "curve_batches", "levels", "probes", "windows"),
    *("epochs", "lr", "end_epochs", "end_lr", "precision", "threads"),
)
"""What stands in every row of how it was made."""
Measured = dict[str, float]


class MeanPooled(nn.Module):
    """Sentence embeddings: the mean of an encoder's last hidden states over the tokens that are there."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        there = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * there).sum(1) / there.sum(1)


@dataclass
class Task:
    """What is made smaller, on what it is calibrated, and what is measured of it.

    budget: of the fraction that may be kept. measure: of a network and the method that made it. loss: of (output,
    calibration batch), for criteria with gradients.
    """

    model: nn.Module
    batches: list[dict[str, Tensor]]
    budget: Callable[[float], secateur.Budget]
    measure: Callable[[nn.Module, str], Measured]
    elimination: Elimination
    loss: Callable[[Any, Tensor], Tensor] | None = None


def read_table(path: Path) -> tuple[list[str], np.ndarray]:
    """Texts and labels of a gzipped table with columns text and label."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        found = list(csv.DictReader(lines))
    return [row["text"] for row in found], np.array([int(row["label"]) for row in found])


class Sentences:
    """The measurements of an embedding model, its dense embeddings of SST-2 dev, and its calibration sentences."""

    def __init__(self, args: argparse.Namespace, dense: nn.Module, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.tables = {n: read_table(args.data / f"sst2_{n}.csv.gz") for n in ("train", "dev", "test")}
        texts, labels = read_table(args.data / "ag_news_test7600.csv.gz")
        self.tables |= {"ag train": (texts[:N_AG_TRAIN], labels[:N_AG_TRAIN])}
        self.tables |= {"ag test": (texts[N_AG_TRAIN:], labels[N_AG_TRAIN:])}
        self.dense = self.embed(dense, "dev")

    def embed(self, model: nn.Module, name: str, batch: int = 64) -> Tensor:
        """Embeddings of a table's sentences, in batches of sentences of like length."""
        texts = self.tables[name][0]
        ids = self.tokenizer(texts, truncation=True, max_length=PROBE_TOKENS)["input_ids"]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        found: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(order), batch):
                chosen = [ids[i] for i in order[start : start + batch]]
                padded = self.tokenizer.pad({"input_ids": chosen}, return_tensors="pt")
                found += model(padded["input_ids"], padded["attention_mask"])
        return torch.stack(found)[torch.tensor(order).argsort()]

    def probe(self, model: nn.Module, train: str, test: str) -> float:
        """Accuracy in percent on one table of a logistic regression that is fitted on another."""
        from sklearn.linear_model import LogisticRegression

        (x, y), (x_test, y_test) = (
            (normalize(self.embed(model, name)).numpy(), self.tables[name][1]) for name in (train, test)
        )
        return 100 * float(LogisticRegression(max_iter=1000).fit(x, y).score(x_test, y_test))

    def measure(self, model: nn.Module, is_probed: bool) -> Measured:
        """Cosine, and both accuracies where it is probed."""
        found = {"cosine": float(cosine_similarity(self.embed(model, "dev"), self.dense).mean())}
        if is_probed:
            found["sst2"] = self.probe(model, "train", "test")
            found["ag_news"] = self.probe(model, "ag train", "ag test")
        return found

    def calibration(self, n: int, length: int, batch: int, seed: int) -> list[dict[str, Tensor]]:
        """Batches of sentences, cut or padded to one length."""
        generator = torch.Generator().manual_seed(seed)
        texts: list[str] = []
        for name in ("train", "ag train"):
            found = self.tables[name][0]
            texts += [found[i] for i in torch.randperm(len(found), generator=generator)[: n // 2].tolist()]
        texts = [texts[i] for i in torch.randperm(len(texts), generator=generator).tolist()]
        ids = self.tokenizer(texts, truncation=True, max_length=length, padding="max_length", return_tensors="pt")
        pairs = zip(ids["input_ids"].split(batch), ids["attention_mask"].split(batch), strict=True)
        return [{"input_ids": i, "attention_mask": m} for i, m in pairs]


def load_minilm(args: argparse.Namespace) -> Callable[[int], Task]:
    from transformers import AutoModel, AutoTokenizer

    model = MeanPooled(AutoModel.from_pretrained(args.folder, add_pooling_layer=False)).eval()
    sentences = Sentences(args, model, AutoTokenizer.from_pretrained(args.folder))
    elimination = Elimination(distance="mse", levels=tuple(args.levels), n_probe=args.probes)

    def task(seed: int) -> Task:
        batches = sentences.calibration(args.samples, args.length, args.batch, seed)
        return Task(
            model,
            batches,
            lambda f: secateur.Budget(macs=f),
            lambda m, method: sentences.measure(m, method in args.probed),
            elimination,
        )

    return task


def load_causal(args: argparse.Namespace) -> Callable[[int], Task]:
    model, pool, test = load(args, args.gguf)
    if args.model != "tiny":
        test = test[: args.windows]
    inside = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name)
    share = inside / sum(p.numel() for p in model.parameters())

    def task(seed: int) -> Task:
        elimination = Elimination(distance="kl", levels=tuple(args.levels), n_probe=args.probes)
        return Task(
            model,
            draw(pool, args, seed),
            lambda f: secateur.Budget(params=1 - (1 - f) * share),
            lambda m, _: perplexity(m, test),
            elimination,
            next_token_loss,
        )

    return task


LOADERS = {"minilm": load_minilm, "smollm2": load_causal, "tiny": load_causal}


def planned(task: Task, scores: Mapping[str, Any], keep: float, config: secateur.PruneConfig) -> secateur.Plan:
    """The plan of the groups that have scores."""
    graph = secateur.trace(task.model, task.batches[0])
    others = {g.name: "no error curve" for g in graph.prunable if g.name not in scores}
    return plan_graph(repair(task.model, task.batches[0], graph), scores, task.budget(keep), config, others)


def scored(task: Task, name: str, curves: Mapping[str, ErrorCurve], n: int | None, seed: int) -> dict[str, Tensor]:
    """A criterion's scores of the groups that have curves, from the first n batches."""
    criterion = make_criterion(name)
    groups = [g for g in secateur.trace(task.model, task.batches[0]).prunable if g.name in curves]
    generator = torch.Generator().manual_seed(seed)
    data = [(b["input_ids"], b["input_ids"]) if task.loss is not None else b for b in task.batches[:n]]
    known: dict[str, Any] = {}
    if needs := needs_of(criterion):
        loss = {} if task.loss is None else {"loss": task.loss}
        known = measure(task.model, groups, needs, data, generator=generator, **loss)
    return score_groups(groups, criterion, Context.of(task.model, generator=generator, **known))


def curves_of(task: Task, args: argparse.Namespace, seed: int) -> tuple[dict[str, ErrorCurve], float]:
    """The error curves, and the seconds that they took; kept in a file, since they don't depend on what follows."""
    path = args.curves / f"{args.model}_{seed}.pt" if args.curves is not None else None
    if path is not None and path.exists():
        kept = torch.load(path, weights_only=True)
        return {name: ErrorCurve(*pair) for name, pair in kept["curves"].items()}, kept["seconds"]
    start = time.perf_counter()
    curves = dict(task.elimination.curves(task.model, task.batches[: args.curve_batches]).curves)
    seconds = time.perf_counter() - start
    if path is not None:
        torch.save({"curves": {n: (c.errors, c.order) for n, c in curves.items()}, "seconds": seconds}, path)
    return curves, seconds


def run(task: Task, args: argparse.Namespace, seed: int) -> Iterator[dict[str, Any]]:
    """Rows of one seed: every method at every fraction."""
    curves, curve_seconds = curves_of(task, args, seed)
    for keep in args.keep:
        ours = secateur.PruneConfig(criterion=task.elimination, method=Lagrangian(), seed=seed)
        made = planned(task, curves, keep, ours)
        for method in args.ours:
            start = time.perf_counter()
            small = secateur.apply(task.model, made, verify=False)
            report = compensate_(task.model, small, made, task.batches, compensation(method, task, args, seed))
            seconds = {"curves s": curve_seconds, "compensate s": time.perf_counter() - start}
            print(report, flush=True)
            yield {"method": method, "keep": keep, **seconds, **costs(made), **task.measure(small, method)}
        for name in args.others:
            start = time.perf_counter()
            scores = scored(task, name, curves, args.curve_batches, seed)
            made = planned(task, scores, keep, secateur.PruneConfig(seed=seed))
            small = secateur.apply(task.model, made, verify=False)
            seconds = {"curves s": time.perf_counter() - start}
            yield {"method": name, "keep": keep, **seconds, **costs(made), **task.measure(small, name)}


def compensation(method: str, task: Task, args: argparse.Namespace, seed: int) -> CompensateConfig:
    """Closed form alone, or with the weights fitted together to the dense outputs afterwards."""
    if method == "closed form":
        return CompensateConfig(reconstruct=None)
    return CompensateConfig(
        reconstruct=ReconstructConfig(
            epochs=args.epochs,
            lr=args.lr,
            end_epochs=args.end_epochs,
            end_lr=args.end_lr,
            distance=task.elimination.distance,
            precision=args.precision,
            seed=seed,
        )
    )


def costs(made: secateur.Plan) -> dict[str, float]:
    before, after = made.cost_before, made.cost_after
    return {"params": after.params / before.params, "macs": after.macs / before.macs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(LOADERS), required=True)
    parser.add_argument("--folder", type=Path, required=True, help="Hugging Face folder of the model")
    parser.add_argument("--gguf", help="file in that folder, where weights come as GGUF (needs the package gguf)")
    parser.add_argument("--data", type=Path, help="folder with the text files; not for tiny")
    parser.add_argument("--keep", type=float, nargs="+", default=[0.7, 0.5], help="fractions (MACs or parameters)")
    parser.add_argument("--samples", type=int, default=1024, help="calibration sentences or windows")
    parser.add_argument("--length", type=int, default=32, help="their tokens")
    parser.add_argument("--batch", type=int, default=16, help="how many of them are one batch")
    parser.add_argument("--curves", type=Path, help="folder that curves are kept in, and read from where they are")
    parser.add_argument("--curve-batches", type=int, help="batches for curves and scores; all by default")
    parser.add_argument("--levels", type=float, nargs="*", default=[0.15, 0.3, 0.5, 0.7, 0.85], help="see Elimination")
    parser.add_argument("--probes", type=int, default=64, help="samples that levels are measured on")
    parser.add_argument("--epochs", type=int, default=0, help="of the fit of segments; 0 for none")
    parser.add_argument("--lr", type=float, default=0.004)
    parser.add_argument("--end-epochs", type=int, default=6, help="of the fit of the whole network")
    parser.add_argument("--end-lr", type=float, default=0.001)
    parser.add_argument("--precision", choices=["fp32", "bf16", "auto"], default="auto", help="of the fits")
    parser.add_argument("--windows", type=int, default=24, help="of 512 tokens that perplexity is measured on")
    parser.add_argument("--ours", nargs="*", default=["closed form", "fitted"], choices=["closed form", "fitted"])
    parser.add_argument("--others", nargs="*", default=["random", "l2", "wanda"])
    parser.add_argument("--probed", nargs="*", default=["dense", "closed form", "fitted"], help="methods (minilm only)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--append", action="store_true", help="to the rows that are there, the dense one among them")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    base = {k: v for k, v in vars(args).items() if k in SETTINGS}
    base |= {"machine": machine("transformers", "scikit-learn")}
    task_of = LOADERS[args.model](args)
    name = f"transformers_{args.model}"
    rows = read_rows(name) if args.append else []
    if not rows:
        first = task_of(args.seeds[0])
        rows = [{**base, "method": "dense", "keep": 1.0, **first.measure(first.model, "dense")}]
        print(rows[0], flush=True)
    measured = [k for k in rows[0] if k not in (*base, "method", "keep")]
    columns = ("method", "keep", "seed", "samples", "params", "macs", *measured, "curves s", "compensate s")
    for seed in args.seeds:
        for row in run(task_of(seed), args, seed):
            rows.append({**base, "seed": seed, **row})
            print({k: v for k, v in rows[-1].items() if k not in base}, flush=True)
            write_rows(name, rows, columns)


if __name__ == "__main__":
    main()
