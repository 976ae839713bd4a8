"""Transformers' models without their weights: built from `config.json` on the meta device, with example inputs."""

from __future__ import annotations

import contextlib
import importlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur.errors import ConfigError, FileError

CONFIG = "config.json"
MARK = "secateur_plan"
"""Key of a config.json that only `load_folder` can follow: {"plan": its file, "config": that of the dense model}."""
_LENGTH = 16  # tokens of the example


def import_transformers() -> Any:
    """The library. Raises ConfigError naming the extra where it is not installed."""
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise ConfigError("transformers is not installed. Get it with: pip install 'secateur[hf]'") from error


def read_config(folder: Path) -> tuple[dict[str, Any], Any, type[nn.Module]]:
    """A folder's `config.json`, the config that Transformers makes of it, and the class of the model.

    Where it is marked, the config is that of the dense model, whose plan is beside it.

    Raises:
        FileError: there is no such file, it names code of its own, a quantized model or an unknown class.
    """
    transformers = import_transformers()
    path = folder / CONFIG
    try:
        data = json.loads(path.read_text())
        names = data["architectures"]
        cls = getattr(transformers, names[0])
        dense = dict(data[MARK]["config"]) if MARK in data else None
    except OSError as error:
        raise FileError(f"'{folder}' is no Hugging Face folder: {path.name}: {error.strerror or error}.") from error
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise FileError(
            f"'{path}' names no class of transformers {transformers.__version__} in \"architectures\""
            f" ({type(error).__name__}: {error}). Models with code of their own are not built from folders: load the"
            " model yourself and use secateur.plan and secateur.apply."
        ) from error
    if data.get("quantization_config"):
        raise FileError(f"'{folder}' holds quantized weights, which can't be cut. Give the checkpoint before that.")
    with quiet():
        config = (
            cls.config_class.from_pretrained(str(folder), local_files_only=True)
            if dense is None
            else cls.config_class.from_dict(dense)
        )
    return data, config, cls


def build(cls: Any, config: Any) -> nn.Module:
    """The architecture on the meta device, in eval mode; tables that no file holds (rotary frequencies) are real.

    Nothing is initialised and no memory is taken for weights.
    """
    from transformers.initialization import no_init_weights

    with quiet(), torch.no_grad():
        with torch.device("meta"), no_init_weights():
            model = cls(config)
        model.tie_weights()
        for name, buffer in model.named_non_persistent_buffers():
            if buffer.is_meta:
                owner, _, last = name.rpartition(".")
                model.get_submodule(owner)._buffers[last] = torch.zeros_like(buffer, device="cpu")
        with torch.random.fork_rng():
            model.initialize_weights()  # fills the tables; on the meta device it does nothing
    result: nn.Module = model.eval()
    return without_cache(result)


def without_cache(model: nn.Module) -> nn.Module:
    """Tell a model and its parts to give no cache: it would be an output that no later token reads here."""
    for module in model.modules():
        if getattr(getattr(module, "config", None), "use_cache", None):
            module.config.use_cache = False  # type: ignore[union-attr]
    return model


def example_inputs(model: Any, config: Any) -> dict[str, Any]:
    """Random inputs of the kind that the model takes, from its config.

    Raises:
        ConfigError: it takes something else than tokens or pixels.
    """
    generator = torch.Generator().manual_seed(0)
    name = model.main_input_name
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if name == "input_ids":
        high = text.vocab_size
        found: dict[str, Any] = {name: torch.randint(0, high, (1, _LENGTH), generator=generator)}
        if getattr(config, "is_encoder_decoder", False):
            found["decoder_input_ids"] = torch.randint(0, high, (1, _LENGTH // 2), generator=generator)
        return found
    if name == "pixel_values" and isinstance(size := getattr(config, "image_size", 224), int):
        channels = getattr(config, "num_channels", 3)
        return {name: torch.randn(1, channels, size, size, generator=generator)}
    raise ConfigError(f"Nobody knows what {type(model).__name__} takes as '{name}'. Pass inputs= as a dict of tensors.")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers warns about settings of the checkpoint, which are not ours to change."""
    logging = import_transformers().utils.logging
    level, has_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if has_bar:
            logging.enable_progress_bar()
