"""Going on after a kill: the model after each finished step, on disk."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.compression.material import Material
from secateur.edits import Edits
from secateur.errors import FileError
from secateur.files import open_folder, save
from secateur.measure.size import unique_state
from secateur.steps.base import Step
from secateur.surgery import copy_model
from secateur.tensors import tensors_in


class Checkpoints:
    """A run so far, in a folder. What belongs to another model, other steps or data of other form is refused.

    After step i there is `i-NAME/`, a saved model; while a step trains, `i.training.safetensors`.
    """

    def __init__(self, folder: Path, dense: nn.Module, steps: Sequence[Step], material: Material) -> None:
        self.folder = folder
        self._dense = dense
        self._names = [step.name for step in steps]
        start = hashlib.sha256(repr(material.sizes()).encode())
        for t in [*unique_state(dense).values(), *tensors_in(material.inputs(1))]:
            start.update(t.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self._digests = []
        for step in steps:
            start.update(repr(step).encode())
            self._digests.append(start.hexdigest())

    def latest(self, dense: nn.Module, edits: Edits) -> tuple[nn.Module, Edits, list[dict[str, Any]]]:
        """The model after the last finished step, its edits and the steps' reports; what is given where none is there.

        Raises:
            FileError: the folder holds another run, or is damaged.
        """
        for i in reversed(range(len(self._names))):
            if not (place := self._place(i)).is_dir():
                continue
            saved = open_folder(place, lambda: copy_model(self._dense))
            if saved.report["digest"] != self._digests[i]:
                raise FileError(
                    f"'{place}' is of a run with another model, other data or other steps."
                    f" Delete '{self.folder}' to start afresh, or choose another folder."
                )
            return saved.model, saved.edits, list(saved.report["steps"])
        return dense, edits, []

    def inside(self, i: int) -> Path:
        """Where step i may keep what it has so far."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{i + 1}.training.safetensors"

    def keep(self, model: nn.Module, edits: Edits, reports: list[dict[str, Any]]) -> None:
        """Save the model after as many steps as there are reports; the one before it goes."""
        i = len(reports) - 1
        save(model, self._place(i), plan=edits, report={"digest": self._digests[i], "steps": reports}, overwrite=True)
        self.inside(i).unlink(missing_ok=True)
        if i:
            shutil.rmtree(self._place(i - 1), ignore_errors=True)

    def remove(self) -> None:
        """Take the last checkpoint away, and the folder where nothing else is in it."""
        shutil.rmtree(self._place(len(self._names) - 1), ignore_errors=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _place(self, i: int) -> Path:
        return self.folder / f"{i + 1}-{self._names[i]}"
