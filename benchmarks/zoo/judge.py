"""One network through one tool, in a process of its own, and what the result is worth: one row."""

from __future__ import annotations

import contextlib
import resource
import time
import warnings
from multiprocessing.connection import Connection
from typing import Any

import torch
from torch import Tensor, nn

import secateur
from secateur.tensors import as_call, tensors_in
from zoo import load
from zoo.tools import TOOLS, Row

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)


def measure(zoo: str, name: str, tool: str, limit_s: float, answer: Connection) -> None:
    """Send the row after each step, so that a process that is ended at the limit has told how far it came."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    row: Row = {"zoo": zoo, "model": name, "tool": tool, "captured": False, "pruned": False, "forward": False}
    row |= {"backward": False, "verified": False, "seconds": {}, "cpu_seconds": {}}
    try:
        torch.manual_seed(0)
        model, inputs = load(zoo).build(name)
        outputs = output_layers(model, inputs)
        counted = counted_parameters(model, outputs)
        row["parameters"] = sum(p.numel() for p in model.parameters())
        row["macs"] = macs(model, inputs)
        answer.send(row)
        _limit(limit_s)
        small = TOOLS[tool](model, inputs, outputs, row)
        _limit(None)
        answer.send(row)
        _judge(row, small, inputs, counted)
    except Exception as error:
        row["error"] = f"{type(error).__name__}: {str(error)[:600]}"
    _limit(None)
    row["total_s"] = round(sum(s for k, s in row["cpu_seconds"].items() if k != "trace" or tool != "secateur"), 3)
    row["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    answer.send({**row, "done": True})


def _judge(row: Row, small: nn.Module, inputs: Any, counted: dict[str, int]) -> None:
    left = dict(small.named_parameters())
    row["parameters_after"] = sum(p.numel() for p in left.values())
    before, after = sum(counted.values()), sum(left[key].numel() for key in counted if key in left)
    row["removed"] = round(1 - after / before, 4) if before else None
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        row["forward"] = bool(tensors_in(small.eval()(*args, **kwargs)))
    row["macs_after"] = macs(small, inputs)
    row["backward_mode"] = "train"
    if problem := train(small, inputs, row["zoo"], row["model"]):
        dense, inputs = load(row["zoo"]).build(row["model"])
        if not train(dense, inputs, row["zoo"], row["model"]):  # the dense network trains, this one does not
            row["train_error"] = problem
        row["backward_mode"] = "eval"
        problem = train(small, inputs, row["zoo"], row["model"], is_training=False)
    row["backward"] = not problem
    if problem:
        row["backward_error"] = problem


def train(model: nn.Module, inputs: Any, zoo: str, name: str, *, is_training: bool = True) -> str:
    """One backward pass of a scalar loss; what went wrong, or nothing. The model is left in eval mode.

    Gradients must be finite and at least one must be there. Detectors get targets in training mode.
    """
    args, kwargs = as_call(inputs)
    targets = load(zoo).targets(name) if hasattr(load(zoo), "targets") else None
    if targets is not None and is_training:
        args = (*args, targets)
    running = {key: b.clone() for key, b in model.named_buffers()}
    try:
        result = model.train(is_training)(*args, **kwargs)
        parts = [t.float().square().mean() for t in tensors_in(result) if t.requires_grad and t.numel()]
        torch.stack(parts).sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not gradients:
            return "no gradient reached a parameter"
        return "" if all(bool(g.isfinite().all()) for g in gradients) else "gradients are not finite"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
        for key, buffer in model.named_buffers():  # running statistics
            if key in running and running[key].shape == buffer.shape:
                buffer.copy_(running[key])


def output_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """Layers that hold parameters and whose output is an output of the model: its classifiers."""
    made: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # an address stays unique only while its tensor lives

    def note(module: nn.Module, _: Any, out: Any) -> None:
        for t in tensors_in(out):
            made.setdefault(t.data_ptr(), module)  # the innermost module is heard first
            kept.append(t)

    layers = [m for m in model.modules() if m is not model and next(m.parameters(recurse=False), None) is not None]
    handles = [m.register_forward_hook(note) for m in layers]
    args, kwargs = as_call(inputs)
    try:
        with torch.no_grad():
            results = tensors_in(model(*args, **kwargs))
    finally:
        for handle in handles:
            handle.remove()
    found = {id(made[t.data_ptr()]): made[t.data_ptr()] for t in results if t.data_ptr() in made}
    return list(found.values())


def counted_parameters(model: nn.Module, outputs: list[nn.Module]) -> dict[str, int]:
    """Sizes of the parameters that are neither of an embedding nor of a classifier, by key."""
    left_out = {id(p) for m in model.modules() if isinstance(m, EMBEDDINGS) for p in m.parameters(recurse=False)}
    left_out |= {id(p) for m in outputs for p in m.parameters(recurse=False)}
    return {key: p.numel() for key, p in model.named_parameters() if id(p) not in left_out}


def macs(model: nn.Module, inputs: Any) -> int | None:
    """Multiply-adds by Secateur's counter, for every tool's result; None where it can't follow the network."""
    with contextlib.suppress(secateur.SecateurError):
        return secateur.trace(model, inputs).cost().macs
    return None


def _limit(seconds: float | None) -> None:
    """Let this process use that many seconds of processor time from now; None lifts the limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = resource.RLIM_INFINITY if seconds is None else int(time.process_time() + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))
