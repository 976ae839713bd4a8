"""Pruning a Hugging Face folder without loading it: planned on the meta device, cut and written shard by shard."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.allocate import Budget, Uniform
from secateur.criteria import make_criterion
from secateur.errors import FileError, PlanError, VerifyError
from secateur.files.atomic import new_folder
from secateur.files.state import State, fill
from secateur.frameworks.huggingface_checkpoint import Checkpoint, cut, open_checkpoint, write_shards
from secateur.frameworks.huggingface_fields import PER_LAYER
from secateur.frameworks.huggingface_model import CONFIG, MARK, build, example_inputs, quiet, read_config, without_cache
from secateur.frameworks.huggingface_plan import PLAN, prepare
from secateur.frameworks.huggingface_scores import stream_scores
from secateur.planning import PruneConfig
from secateur.plans import Plan
from secateur.surgery import apply
from secateur.tensors import Inputs, named_tensors
from secateur.verification import VerifyReport, verify

_LOADABLE = 2**31  # bytes of weights up to which the numbers are proven as well
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".h5", ".msgpack", ".ckpt", ".gguf", ".onnx", ".py", ".index.json")


@dataclass(frozen=True)
class FolderReport:
    """What `prune_folder` did.

    Attributes:
        folder: the new one.
        plan: what was kept; also in its `plan.json`.
        numbers: fields of `config.json` that changed, as (old, new).
        unloadable: why `from_pretrained` can't load it, so that only `load_folder` does; empty where both can.
        n_shards, size_bytes: of the new weights. size_bytes_before: of the old ones.
        proof: the numeric proof on loaded models; None where the checkpoint was too large for it, or it was not asked.
    """

    folder: Path
    plan: Plan
    numbers: dict[str, tuple[Any, Any]]
    n_shards: int
    size_bytes: int
    size_bytes_before: int
    unloadable: str = ""
    proof: VerifyReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON data, without the plan's indices."""
        before, after = self.plan.cost_before, self.plan.cost_after
        return {
            "folder": str(self.folder),
            "config": {name: {"before": old, "after": new} for name, (old, new) in self.numbers.items()},
            "from_pretrained": self.unloadable or "loads it",
            "params": {"before": before.params, "after": after.params},
            "macs": {"before": before.macs, "after": after.macs},
            "size_bytes": {"before": self.size_bytes_before, "after": self.size_bytes},
            "shards": self.n_shards,
            "skipped": [list(pair) for pair in self.plan.skipped],
            "notes": list(self.plan.notes),
            "max_difference": None if self.proof is None else self.proof.max_difference,
        }

    def __str__(self) -> str:
        how = [f"{name} {old} → {new}" for name, (old, new) in self.numbers.items() if PER_LAYER not in name]
        some = sorted({name.rpartition(".")[2] for name in self.numbers if PER_LAYER in name})
        how += [f"{name} by layer" for name in some]
        loads = "from_pretrained loads it" if not self.unloadable else "load it with load_folder"
        lines = [str(self.plan), f"config.json: {', '.join(how) or 'as it was'}; {loads}"]
        lines += [f"from_pretrained can't build it: {self.unloadable}"] if self.unloadable else []
        lines += [f"{self.folder}: {self.n_shards} shards, {self.size_bytes_before:,} → {self.size_bytes:,} bytes"]
        lines += [str(self.proof) if self.proof else "verified: shapes and operators; numbers not compared"]
        return "\n".join(lines)


def prune_folder(
    folder: str | os.PathLike[str],
    output: str | os.PathLike[str],
    budget: Budget,
    config: PruneConfig | None = None,
    *,
    per_layer: bool = False,
    inputs: Inputs | None = None,
    prove: bool | None = None,
    overwrite: bool = False,
) -> FolderReport:
    """Prune a checkpoint of Transformers from folder to folder; no more than a shard of it is in memory.

    Args:
        folder: `config.json` with safetensors files, as `save_pretrained` writes it. Code in it is never run.
        output: it must not exist, unless `overwrite`; then it must be what this function wrote.
        config: criterion (l1, l2 or random: no gradients here), allocation, modules to leave alone; by default
            l2, and every width the same fraction in multiples of 8, which kernels for bfloat16 like or even ask for.
        per_layer: let each layer choose its widths. `config.json` says which, as far as it can. `load_folder` loads
            the result; so does `from_pretrained` where Transformers builds that model from that config.
            By default all layers get the same widths, and both load it.
        inputs: example inputs; by default random tokens or pixels. Only shapes and dtypes count.
        prove: load both models at the end and compare numbers; by default where the weights take less than 2 GB.
    Returns:
        The plan and what was written. The new folder appears whole or not at all.
    Raises:
        FileError: the folder is none, or damaged; the output exists; the system refuses to write.
        PlanError: nothing can be pruned, or the rebuilt model is not the planned one.
        VerifyError: the numbers are not those of the plan; nothing was written then.
    """
    source, target = Path(os.path.abspath(folder)), Path(os.path.abspath(output))
    _check_output(target, overwrite=overwrite)
    data, hf_config, cls = read_config(source)
    if MARK in data:
        raise FileError(f"'{source}' was pruned layer by layer. Prune the checkpoint that it was made from instead.")
    model = build(cls, hf_config)
    checkpoint = open_checkpoint(source, model)
    example = example_inputs(model, hf_config) if inputs is None else inputs
    config = config or PruneConfig(method=Uniform(round_to=8))
    prepared = prepare(model, cls, data, example, per_layer=per_layer)
    groups = prepared.choose(config)
    scores = stream_scores(groups, make_criterion(config.criterion), checkpoint, seed=config.seed)
    planned = prepared.plan(scores, budget, config)
    plan, new_data = planned.plan, planned.data
    before = checkpoint.size_bytes
    is_small = before <= _LOADABLE if prove is None else prove
    with new_folder(target, overwrite=overwrite) as partial:
        written = write_shards(_cut_all(checkpoint, plan), partial, checkpoint.largest_shard)
        (partial / CONFIG).write_text(json.dumps(new_data, indent=2) + "\n")
        (partial / PLAN).write_text(plan.to_json())
        _copy_rest(source, partial)
        proof = _prove(cls, source, partial, plan, example) if is_small else None
    sizes = written["shards"], written["size_bytes"], before
    return FolderReport(Path(output), plan, _changed(data, new_data), *sizes, planned.unloadable, proof)


def load_folder(folder: str | os.PathLike[str]) -> nn.Module:
    """Load a folder that `prune_folder` wrote, in either form, or any other of Transformers, in eval mode.

    Where `config.json` is marked, it holds the dense one too: that architecture is built on the meta device, the plan
    beside it is replayed, and the weights are put in place.
    Raises:
        FileError: it is no such folder, or plan and weights do not fit.
    """
    source = Path(folder)
    data, _, cls = read_config(source)
    if MARK not in data:
        return _from_pretrained(cls, source)
    small = build_folder(source)
    checkpoint = open_checkpoint(source, small)
    keys = list(small.state_dict())
    named = named_tensors(small)
    first: dict[int, str] = {}
    tied = {key: first[id(named[key])] for key in keys if first.setdefault(id(named[key]), key) != key}
    constants = {key: str(t.dtype).removeprefix("torch.") for key, t in named.items() if key not in set(keys)}
    return fill(small, State(dict(checkpoint), tied, constants), str(source)).eval()


def build_folder(folder: str | os.PathLike[str]) -> nn.Module:
    """The architecture of a folder, in either form, on the meta device: no weight is read.

    Raises:
        FileError: it is no such folder, or its plan does not fit.
    """
    source = Path(folder)
    data, hf_config, cls = read_config(source)
    model = build(cls, hf_config)
    if MARK not in data:
        return model
    try:
        return apply(model, Plan.from_json((source / PLAN).read_text()), verify=False)
    except (OSError, PlanError) as error:
        raise FileError(f"The plan in '{source}' can't be replayed: {error} Restore it from a copy.") from error


def _from_pretrained(cls: Any, folder: Path) -> nn.Module:
    with quiet():
        model: nn.Module = cls.from_pretrained(str(folder), local_files_only=True, dtype="auto")
    return without_cache(model.eval())


def _cut_all(checkpoint: Checkpoint, plan: Plan) -> Iterator[tuple[str, Tensor]]:
    for key in checkpoint:
        tensor = checkpoint[key]
        yield key, cut(tensor, plan.keep(key) if key in plan.tensors else [])


def _check_output(target: Path, *, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise FileError(f"'{target}' exists. Choose another folder, or overwrite it (overwrite=True, --force).")
    if target.is_symlink() or not target.is_dir() or not {CONFIG, PLAN} <= {path.name for path in target.iterdir()}:
        raise FileError(f"'{target}' is no folder that prune_folder wrote, so it isn't overwritten. Choose another.")


def _copy_rest(source: Path, target: Path) -> None:
    """Tokenizers, generation settings, licences: what is no weight and no code."""
    for path in source.iterdir():
        known = path.name in (CONFIG, PLAN) or path.name.endswith(_WEIGHTS) or path.name.startswith(".")
        if path.is_file() and not known:
            shutil.copyfile(path, target / path.name)


def _prove(cls: Any, source: Path, new: Path, plan: Plan, inputs: Inputs) -> VerifyReport:
    report = verify(_from_pretrained(cls, source), load_folder(new), plan, inputs)
    if not report.is_ok:
        raise VerifyError(f"The pruned checkpoint fails its proof, and nothing was written.\n{report}")
    return report


def _changed(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = {}
    for key, value in new.items():
        if key == MARK:
            continue
        if isinstance(value, dict):
            found |= _changed(old.get(key) or {}, value, f"{prefix}{key}.")
        elif old.get(key) != value:
            found[f"{prefix}{key}"] = (old.get(key), value)
    return found
