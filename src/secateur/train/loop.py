"""One linear training loop on Accelerate: the same code on one CPU, many GPUs or many nodes (`accelerate launch`)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

from secateur.compiling import cant_compile, compiled, is_compilers, never_eager
from secateur.data.batches import Batch, batches, labels_of, length, loader, logits_of
from secateur.errors import ConfigError, TrainError
from secateur.measure.modes import cpu_threads, eval_mode
from secateur.precision import product_dtype
from secateur.train.augment import check_labels_stay
from secateur.train.checkpoint import RunState, load_checkpoint_, save_checkpoint
from secateur.train.config import TrainConfig, make_optimizer
from secateur.train.guard import check_start, nonfinite_cause
from secateur.train.history import EpochRecord, History, epochs_since_best
from secateur.train.losses import Loss, compute_loss
from secateur.train.progress import Advance, progress_bar
from secateur.train.regularizers import Penalty, bind_all
from secateur.train.schedule import EpochBatches, cosine_lr, derived_seed

MAY_CHANGE = frozenset({"num_threads", "checkpoint_every"})  # between a run and its resume


class Callback:
    """Looks on, and may change weights in place, for example to keep zeros zero. Override what you need."""

    def on_step(self, model: nn.Module, step: int) -> None:
        """Called after each optimizer step; `step` counts from 0 over the whole run."""

    def on_epoch(self, model: nn.Module, record: EpochRecord) -> None:
        """Called after each epoch and its validation, before the checkpoint."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What the loop works with; made once."""

    accelerator: Any
    model: nn.Module  # the user's
    wrapped: nn.Module  # as Accelerate runs it
    optimizer: Any
    loader: DataLoader[Any]
    order: EpochBatches
    loss: Loss | None
    penalties: tuple[Penalty, ...]
    config: TrainConfig
    callbacks: Sequence[Callback]
    products: torch.dtype | None  # what they are computed in, where that isn't the type of the weights


def fit_(
    model: nn.Module,
    train: Dataset[Any],
    val: Dataset[Any] | None = None,
    config: TrainConfig | None = None,
    *,
    loss: Loss | None = None,
    checkpoint: Path | str | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
) -> History:
    """Train the model in place. It ends in eval mode, with the weights of the last epoch, on Accelerate's device.

    Args:
        model: its parameters with requires_grad learn.
        train: items (x, y), or dicts of keyword inputs with "labels".
        val: likewise; measured after each epoch, needed for `patience`.
        config: see `TrainConfig`.
        loss: (outputs, batch) to a scalar; None: cross-entropy, or the loss that the model itself computes.
        checkpoint: a file. Written every `checkpoint_every` epochs; if it exists, the run goes on from it, and ends
            with the weights, bit for bit, that it would have had without the break.
        progress: draw a bar on stderr, if that is a terminal.
        callbacks: called after steps and epochs.
    Raises:
        TrainError: nothing to train; NaN or Inf (the model is then left as it is); a checkpoint of another run; the
            model can't be compiled.
        DataError: data is empty or does not fit the model.
        FileError: the checkpoint cannot be read or written.

    >>> from secateur.data import ArrayDataset
    >>> data = ArrayDataset(torch.eye(4), torch.tensor([0, 1, 0, 1]))
    >>> history = fit_(nn.Linear(4, 2), data, config=TrainConfig(epochs=30, lr=0.1), progress=False)
    >>> history.last.epoch, history.last.train_loss < 0.3
    (30, True)
    """
    config = config or TrainConfig()
    if config.patience is not None and val is None:
        raise ConfigError(f"patience={config.patience} needs validation data. Pass val, or set patience=None.")
    if loss is None:
        check_labels_stay(config.augment)
    path = None if checkpoint is None else Path(checkpoint)
    check_start(model, train, val)
    with _borrowed_state(config), _runnable(model, config), _prepared(model, train, loss, config, callbacks) as run:
        records = [] if path is None or not path.exists() else _resume_(path, run)
        resumed_from = len(records)
        steps_done, is_main = resumed_from * len(run.order), run.accelerator.is_main_process
        with progress_bar(config.epochs * len(run.order), done=steps_done, is_shown=progress and is_main) as advance:
            while len(records) < config.epochs and not _is_stalled(records, config):
                records.append(_epoch(run, len(records) + 1, val, advance))
                for callback in callbacks:
                    callback.on_epoch(model, records[-1])
                is_last = len(records) == config.epochs or _is_stalled(records, config)
                if path is not None and (is_last or len(records) % config.checkpoint_every == 0):
                    _save(path, run, records)
    model.eval()
    is_stopped_early = _is_stalled(records, config) and len(records) < config.epochs
    return History(epochs=tuple(records), is_stopped_early=is_stopped_early, resumed_from=resumed_from)


@contextmanager
def _borrowed_state(config: TrainConfig) -> Iterator[None]:
    """Give the thread count and the global random state back afterwards."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    kind = "cuda" if accelerator is None else accelerator.type
    devices = [] if accelerator is None or kind == "mps" else [torch.accelerator.current_device_index()]
    with cpu_threads(config.num_threads), torch.random.fork_rng(devices=devices, device_type=kind):
        yield


@contextmanager
def _runnable(model: nn.Module, config: TrainConfig) -> Iterator[None]:
    """Say what to do when the model can't be run as the settings say; only steps know."""
    try:
        with never_eager() if config.is_compiled else nullcontext():
            yield
    except Exception as error:
        if config.is_channels_last and "view size is not compatible" in str(error):
            text = "views images as if their channels lay one after another"
            raise TrainError(f"{type(model).__name__} {text}. Set is_channels_last=False.") from error
        if not (config.is_compiled and is_compilers(error)):
            raise
        advice = "Set is_compiled=False, or keep batches to fewer shapes."
        raise TrainError(f"{cant_compile(model, error)} {advice}") from error


@contextmanager
def _prepared(
    model: nn.Module, train: Dataset[Any], loss: Loss | None, config: TrainConfig, callbacks: Sequence[Callback]
) -> Iterator[_Run]:
    from accelerate.accelerator import Accelerator
    from accelerate.utils.dataclasses import DataLoaderConfiguration

    # split_batches: batch_size counts all processes, so the steps do not depend on how many there are
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(split_batches=True))
    if config.batch_size % accelerator.num_processes:
        raise ConfigError(
            f"batch_size={config.batch_size} is not a multiple of the {accelerator.num_processes} processes."
        )
    model.to(accelerator.device)
    order = EpochBatches(length(train), batch_size=config.batch_size, seed=config.seed)
    penalties = bind_all(config.regularizers, model, train)
    parts = (model, make_optimizer(model, config), loader(train, order))
    wrapped, optimizer, prepared = accelerator.prepare(*parts)  # type: ignore[no-untyped-call]
    run = _Run(
        accelerator=accelerator,
        model=model,
        wrapped=compiled(wrapped) if config.is_compiled else wrapped,
        optimizer=optimizer,
        loader=prepared,
        order=order,
        loss=loss,
        penalties=penalties,
        config=config,
        callbacks=callbacks,
        products=product_dtype(config.precision, accelerator.device),
    )
    try:
        yield run
    finally:
        if accelerator.device.type != "cpu":  # it collects garbage, which takes as long as a small run; RAM can wait
            accelerator.free_memory()  # type: ignore[no-untyped-call]
        model.__dict__.pop("_is_accelerate_prepared", None)


def _epoch(run: _Run, epoch: int, val: Dataset[Any] | None, advance: Advance) -> EpochRecord:
    start = time.perf_counter()
    train_loss = _train_epoch(run, epoch, advance)
    val_loss, val_accuracy = (None, None) if val is None else _validate(run, val, epoch)
    return EpochRecord(
        epoch=epoch,
        train_loss=train_loss,
        val_loss=val_loss,
        val_accuracy=val_accuracy,
        lr=run.optimizer.param_groups[0]["lr"],
        seconds=time.perf_counter() - start,
    )


def _train_epoch(run: _Run, epoch: int, advance: Advance) -> float:
    config, n_steps = run.config, len(run.order)
    process = run.accelerator.process_index
    torch.manual_seed(derived_seed(config.seed, epoch, process, 0))  # dropout and the like
    generator = torch.Generator().manual_seed(derived_seed(config.seed, epoch, process, 1))
    run.order.set_epoch(epoch)
    run.loader.set_epoch(epoch)  # type: ignore[attr-defined]  # else Accelerate would set its own count
    run.model.train()
    total = torch.zeros(2, dtype=torch.float64)  # sum of losses, samples
    for i, batch in enumerate(run.loader):
        step = (epoch - 1) * n_steps + i
        lr = cosine_lr(step, config.epochs * n_steps, lr=config.lr, warmup_fraction=config.warmup_fraction)
        for group in run.optimizer.param_groups:
            group["lr"] = lr
        batch = _laid_out(_augmented(batch, config, generator), config)
        value = _step(run, batch, step, where=f"epoch {epoch}, step {i + 1} of {n_steps}")
        total += torch.tensor([value * len(labels_of(batch)), len(labels_of(batch))], dtype=torch.float64)
        for callback in run.callbacks:
            callback.on_step(run.model, step)
        advance(f"epoch {epoch}/{config.epochs}, loss {value:.4f}")
    weights_ok = all(bool(torch.isfinite(p).all()) for p in run.model.parameters())
    if not weights_ok:
        raise _diverged(run, batch, f"the end of epoch {epoch}")
    total = run.accelerator.reduce(total.float().to(run.accelerator.device))
    return float(total[0] / total[1])


def _augmented(batch: Batch, config: TrainConfig, generator: torch.Generator) -> Batch:
    if config.augment is None:
        return batch
    if isinstance(batch, dict):
        raise ConfigError("augment works on (x, y) batches, but these are dicts. Set augment=None.")
    return config.augment(batch[0], generator), batch[1]


def _laid_out(batch: Batch, config: TrainConfig) -> Batch:
    if not config.is_channels_last:
        return batch
    layout = torch.channels_last
    laid: Batch = pytree.tree_map_only(
        Tensor, lambda t: t.contiguous(memory_format=layout) if t.dim() == 4 else t, batch
    )
    return laid


def _step(run: _Run, batch: Batch, step: int, where: str) -> float:
    """Do one optimizer step and return the loss before it, without the penalties."""
    kind = run.accelerator.device.type
    with torch.autocast(kind, run.products, enabled=run.products is not None):
        value, _ = compute_loss(run.wrapped, batch, run.loss, label_smoothing=run.config.label_smoothing)
    loss = float(value.detach())
    if not _is_finite(loss):
        raise _diverged(run, batch, where, loss)
    for penalty in run.penalties:
        value = value + penalty(step)
    run.optimizer.zero_grad()
    run.accelerator.backward(value)
    if run.config.grad_clip is not None:
        norm = float(run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.grad_clip))
        if not _is_finite(norm):
            raise _diverged(run, batch, f"{where} (norm of the gradient {norm})", loss)
    run.optimizer.step()
    return loss


def _is_finite(value: float) -> bool:
    return abs(value) < float("inf")


def _diverged(run: _Run, batch: Batch, where: str, loss: float | None = None) -> TrainError:
    shown = "" if loss is None else f" (loss {loss})"
    return TrainError(
        f"Numbers stopped being finite at {where}{shown}. {nonfinite_cause(run.model, batch)}"
        f" Lower lr={run.config.lr}, set grad_clip, or clean the data."
    )


def _validate(run: _Run, val: Dataset[Any], epoch: int) -> tuple[float, float | None]:
    """Mean loss and accuracy. Each process does all of it; the main one's numbers count, so that all stop together."""
    from accelerate.utils.operations import broadcast

    n_samples, n_hits, total = 0, 0, 0.0
    has_accuracy = True
    with eval_mode(run.model), torch.no_grad():
        for batch in batches(val, batch_size=256, device=run.accelerator.device):
            value, outputs = compute_loss(run.model, batch, run.loss)
            labels = labels_of(batch)
            if not _is_finite(float(value)):
                raise _diverged(run, batch, f"validation of epoch {epoch}", float(value))
            n_samples += len(labels)
            total += float(value) * len(labels)
            hits = _hits(outputs, labels)
            has_accuracy = has_accuracy and hits is not None
            n_hits += hits or 0
    numbers = torch.tensor([total / n_samples, n_hits / n_samples], device=run.accelerator.device)
    mean_loss, accuracy = broadcast(numbers).tolist()
    return mean_loss, accuracy if has_accuracy else None


def _hits(outputs: Any, labels: Tensor) -> int | None:
    logits = logits_of(outputs)
    if logits.ndim != 2 or labels.ndim != 1 or labels.is_floating_point():
        return None
    return int((logits.argmax(1) == labels).sum())


def _is_stalled(records: list[EpochRecord], config: TrainConfig) -> bool:
    losses = [record.val_loss for record in records if record.val_loss is not None]
    return config.patience is not None and epochs_since_best(losses) >= config.patience


def _save(path: Path, run: _Run, records: list[EpochRecord]) -> None:
    if run.accelerator.is_main_process:
        state = RunState(config=run.config.to_dict(), n_samples=run.order.n_samples, epochs=tuple(records))
        save_checkpoint(path, run.model, run.optimizer, state)
    run.accelerator.wait_for_everyone()


def _resume_(path: Path, run: _Run) -> list[EpochRecord]:
    state = load_checkpoint_(path, run.model, run.optimizer)
    now, then = run.config.to_dict(), state.config
    differing = [k for k in sorted(now.keys() | then.keys()) if k not in MAY_CHANGE and now.get(k) != then.get(k)]
    changes = [f"{key} was {then.get(key)} and is {now.get(key)}" for key in differing]
    if state.n_samples != run.order.n_samples:
        changes.append(f"the training data had {state.n_samples} samples and has {run.order.n_samples}")
    if changes:
        raise TrainError(
            f"The checkpoint {path} is of another run: {'; '.join(changes)}. Go on with the same, or delete it."
        )
    return list(state.epochs)
