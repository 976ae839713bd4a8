"""From the texts on the command line to a model, its example inputs and its data."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.cli.options import read_shape
from secateur.compression import CalibrationConfig, check_weights
from secateur.data import DataSplits, ReadConfig, load_data
from secateur.data.batches import calibration_batches
from secateur.edits import Edits
from secateur.errors import CaptureError, ConfigError
from secateur.files import load_weights, open_folder
from secateur.recipe import DataConfig, Recipe, read_recipe_text
from secateur.sources import build_model, example_input
from secateur.specs import from_spec


@dataclass(frozen=True)
class Opened:
    """A model with what is known about it. `edits` lead from `source` to the model, where it was a saved one."""

    model: nn.Module
    name: str
    source: str | None
    edits: Edits = Edits()
    recipe: Recipe | None = None

    def inputs(self, shape: str | None = None, data: DataSplits | None = None) -> Any:
        """Example inputs: of a shape (`1,3,224,224`), of the data, of the saved plan, or what the source usually takes.

        Raises:
            ConfigError: the text is no shape; or there is none, and nothing else says what the model takes.
        """
        if shape is not None:
            return torch.zeros(read_shape(shape))
        if data is not None:
            return data.train.fetch([0])[0]
        if self.edits.inputs is not None:
            return from_spec(self.edits.inputs)
        found = None if self.source is None else example_input(self.source, self.model)
        if found is None:
            raise ConfigError(f"Nobody knows what '{self.name}' takes. Give --input-shape, for example 1,3,224,224.")
        return found


def open_model(source: str, *, weights: Path | str | None = None, seed: int = 0, trust_source: bool = False) -> Opened:
    """Open a saved folder, or build a source with fresh weights (of the seed) or those of a file.

    Raises:
        CaptureError: the model has no parameters.
        GroupError: its weights hold NaN or Inf.
    """
    if os.path.isdir(source):
        if weights is not None:
            raise ConfigError(f"'{source}' is a saved model with weights of its own. Leave --weights out.")
        saved = open_folder(source, trust_source=trust_source)
        recipe = None if saved.recipe is None else read_recipe_text(saved.recipe, where=f"recipe.toml in '{source}'")
        opened = Opened(saved.model, source, saved.manifest.source, saved.edits, recipe)
    else:
        torch.manual_seed(seed)
        model = build_model(source)
        opened = Opened(model if weights is None else load_weights(model, Path(weights)), source, source)
    if next(opened.model.parameters(), None) is None:
        raise CaptureError(f"'{source}' has no parameters, so there is nothing to make smaller. Give the model itself.")
    check_weights(opened.model)
    return opened


def open_data(text: str | None, seed: int | None, opened: Opened) -> DataSplits:
    """Read the data that was asked for, or else that of the saved recipe, cut as it was then.

    Raises:
        ConfigError: neither is there.
    """
    config, read = DataConfig(), ReadConfig()
    if opened.recipe is not None and text in (None, opened.recipe.data.source):
        config, read = opened.recipe.data, opened.recipe.read
    elif text is None:
        raise ConfigError(
            f"'{opened.name}' was saved without a recipe that names its data. Give --data, such as digits."
        )
    else:
        config = dataclasses.replace(config, source=text)
    return read_data(config if seed is None else dataclasses.replace(config, seed=seed), read)


def open_calibration(data: DataSplits | None, seed: int) -> Iterator[Any] | None:
    """Batches of training samples to measure on, as many as `compress` takes by default; None without data."""
    return None if data is None else calibration_batches(data.train, CalibrationConfig().n_samples, seed=seed)


def read_data(config: DataConfig, read: ReadConfig) -> DataSplits:
    """Read what a recipe's sections [data] and [read] say."""
    return load_data(
        config.source, seed=config.seed, val_fraction=config.val_fraction, test_fraction=config.test_fraction, read=read
    )
