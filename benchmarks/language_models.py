"""Causal language models for benchmarks: opening one with windows of text, drawing some to calibrate on, perplexity.

`smollm2`: SmolLM2-135M, with windows of WikiText-2: of the validation text to calibrate on, and of 512 tokens of the
test text, each on its own, to measure on.
`tiny`: any small causal model with `samples.npz` (`ids`): calibration on the first half, perplexity of the second.
"""

from __future__ import annotations

import argparse
import gzip
import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

WINDOW = 512  # tokens over which perplexity is measured
Batch = dict[str, Tensor]


class Logits(nn.Module):
    """A causal model's logits alone."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, use_cache=False).logits


def arguments(
    about: str | None, methods: Iterable[str], *, samples: int, length: int, windows: int
) -> argparse.ArgumentParser:
    """What benchmarks on these models ask for, with defaults of their own."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["smollm2", "tiny"], required=True)
    parser.add_argument("--folder", type=Path, required=True, help="Hugging Face folder of the model")
    parser.add_argument("--data", type=Path, help="folder with the text files; not for tiny")
    parser.add_argument("--samples", type=int, default=samples, help="calibration windows")
    parser.add_argument("--length", type=int, default=length, help="their tokens")
    parser.add_argument("--batch", type=int, default=4, help="how many of them are one batch")
    parser.add_argument("--windows", type=int, default=windows, help="that perplexity is measured on")
    parser.add_argument("--methods", nargs="+", default=list(methods), choices=list(methods))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--threads", type=int, default=1)
    return parser


def load(args: argparse.Namespace, gguf: str | None = None) -> tuple[Logits, Tensor, Tensor]:
    """The model of `--folder`, windows to draw from (n, `--length`), and all windows that may be measured on.

    gguf: a file of the folder, where weights come as GGUF.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": gguf} if gguf else {}
    model = Logits(AutoModelForCausalLM.from_pretrained(args.folder, dtype=torch.float32, **where)).eval()
    if args.model == "tiny":
        ids = torch.from_numpy(np.load(args.folder / "samples.npz")["ids"].astype("int64"))
        pool, test = ids.split(len(ids) // 2)
        return model, pool[:, : args.length], test
    tokenizer = AutoTokenizer.from_pretrained(args.folder, **where)

    def read(part: str, length: int) -> Tensor:
        with gzip.open(args.data / f"wikitext2_{part}.txt.gz", "rt", encoding="utf-8") as lines:
            return windows_of(torch.tensor(tokenizer(lines.read())["input_ids"]), length)

    return model, read("valid", args.length), read("test", WINDOW)


def draw(pool: Tensor, args: argparse.Namespace, seed: int) -> list[Batch]:
    """`--samples` of the windows, in batches of `--batch`."""
    drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))[: args.samples]
    return [{"input_ids": ids} for ids in pool[drawn].split(args.batch)]


def next_token_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean cross-entropy of each token given those before it, in nats."""
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def perplexity(model: nn.Module, windows: Tensor) -> dict[str, float]:
    """exp of the mean loss over windows (n, length), each on its own."""
    with torch.no_grad():
        losses = [float(next_token_loss(model(w), w)) for w in windows.split(1)]
    return {"perplexity": math.exp(sum(losses) / len(losses))}


def windows_of(ids: Tensor, length: int) -> Tensor:
    """Windows one after another, (n, length); what is left at the end is left out."""
    return ids[: len(ids) // length * length].view(-1, length)
