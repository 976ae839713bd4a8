"""Where a model comes from, as one string that a file can store: `scheme:name`, with `?key=value&…` for arguments.

    builtin:digits_cnn?width=16      a network of `secateur.models`
    torchvision:resnet18             torchvision's constructor, with fresh weights
    timm:resnet18.a1_in1k            timm's constructor, with fresh weights
    python:pkg.mod:fn                imports pkg.mod and calls fn(): this runs that code

Nothing is ever downloaded. Values are Python literals: `?num_classes=10`, `?drop_path_rate=0.1`, `?act_layer='relu'`.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from secateur.calls import read_call
from secateur.errors import ConfigError, SecateurError
from secateur.registry import Registry

Builder = Callable[[str, dict[str, Any]], nn.Module]
SCHEMES: Registry[str, Builder] = Registry("model source")

_NAME = re.compile(r"[\w.\-]+(:[\w.]+)?")
_LOADS_FILES = ("weights", "pretrained", "checkpoint", "cache_dir")  # arguments that read or download something
_INPUTS = {"digits_cnn": (1, 1, 8, 8), "cifar_resnet20": (1, 3, 32, 32), "cifar_resnet56": (1, 3, 32, 32)}


@dataclass(frozen=True)
class ModelSource:
    """A source, taken apart."""

    scheme: str
    name: str
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def runs_code(self) -> bool:
        """True where building imports code that the string itself names."""
        return self.scheme == "python"


def parse_source(source: str) -> ModelSource:
    """Take a source apart, strictly, without building anything.

    Raises:
        ConfigError: it is not of the form `scheme:name?key=value`, or nobody registered the scheme.

    >>> parse_source("builtin:digits_cnn?width=16")
    ModelSource(scheme='builtin', name='digits_cnn', arguments={'width': 16})
    >>> parse_source("resnet18")
    Traceback (most recent call last):
    secateur.errors.ConfigError: 'resnet18' is no model source. Known: builtin:, python:, timm:, torchvision:, each with
    a name, for example torchvision:resnet18; or the folder of a saved model.
    """
    scheme, colon, rest = source.partition(":")
    if not colon or scheme not in SCHEMES:
        known = ", ".join(f"{name}:" for name in sorted(SCHEMES))
        raise ConfigError(
            f"{source!r} is no model source. Known: {known}, each with a name, for example torchvision:resnet18;"
            " or the folder of a saved model."
        )
    name, _, _ = rest.partition("?")
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{source!r}: {name!r} is no name. Use letters, digits, '_', '.' and '-' after '{scheme}:'.")
    return ModelSource(scheme, name, read_call(source)[1])


def build_model(source: str) -> nn.Module:
    """Build the model that a source names, with fresh weights. Torch's global random state moves on, as in any init.

    Raises:
        ConfigError: the source is unknown, takes other arguments, needs an extra, or its code fails.

    >>> sum(p.numel() for p in build_model("builtin:digits_cnn?width=4").parameters())
    1926
    """
    parsed = parse_source(source)
    try:
        model = SCHEMES[parsed.scheme](parsed.name, parsed.arguments)
    except SecateurError:
        raise
    except Exception as error:  # the source's own code: anything may come out of it
        raise ConfigError(
            f"Building {source!r} failed: {type(error).__name__}: {error}. Check its name and arguments."
        ) from error
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{source!r} gave a {type(model).__name__}. It must give a torch.nn.Module.")
    return model


def example_input(source: str, model: nn.Module) -> Tensor | None:
    """Return zeros of the shape that the source's models usually take, or None where nobody knows it."""
    parsed = parse_source(source)
    shape: Any = None
    if parsed.scheme == "builtin" and parsed.name == "text_cnn":
        return torch.ones(1, 64, dtype=torch.long)
    if parsed.scheme == "builtin":
        columns = parsed.arguments.get("in_features")
        shape = _INPUTS.get(parsed.name) if columns is None else (1, columns)
    elif parsed.scheme == "torchvision":
        shape = (1, 3, 299, 299) if parsed.name == "inception_v3" else (1, 3, 224, 224)
    elif parsed.scheme == "timm":
        size = getattr(model, "pretrained_cfg", {}).get("input_size")
        shape = (1, *size) if size else None
    return None if shape is None else torch.zeros(shape)


def _refuse_files(scheme: str, arguments: dict[str, Any]) -> None:
    if found := [key for key in arguments if key.startswith(_LOADS_FILES)]:
        raise ConfigError(
            f"{scheme}: '{found[0]}' would read or download a file. Build with fresh weights and load yours afterwards"
            " (--weights FILE.safetensors)."
        )


def _import_extra(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{module} is not installed. Get it with: pip install 'secateur[vision]'") from error


@SCHEMES.register("builtin")
def _builtin(name: str, arguments: dict[str, Any]) -> nn.Module:
    from secateur.models import MODELS

    builder = MODELS[name]
    known = list(inspect.signature(builder).parameters)
    if unknown := [key for key in arguments if key not in known]:
        raise ConfigError(f"builtin:{name} takes no '{unknown[0]}'. Known: {', '.join(known)}.")
    return builder(**arguments)


@SCHEMES.register("torchvision")
def _torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    _refuse_files("torchvision", arguments)
    models = _import_extra("torchvision").models
    known = models.list_models()
    if name not in known:
        raise ConfigError(f"torchvision has no model {name!r}. {_nearest(name, known)}")
    settings = dict(arguments)
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        settings["weights_backbone"] = None  # its default would be downloaded
    if name in {"googlenet", "inception_v3"}:
        settings.setdefault("init_weights", True)  # today's default, which warns unless it is said
    model: nn.Module = models.get_model(name, weights=None, **settings)
    return model


@SCHEMES.register("timm")
def _timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    _refuse_files("timm", arguments)
    timm = _import_extra("timm")
    if ":" in name or not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}. {_nearest(name.partition('.')[0], timm.list_models())}")
    model: nn.Module = timm.create_model(name, pretrained=False, **arguments)
    return model


@SCHEMES.register("python")
def _python(name: str, arguments: dict[str, Any]) -> nn.Module:
    module_name, _, function = name.partition(":")
    if not function:
        raise ConfigError(f"python:{name} names no function. Write python:package.module:function.")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a script's own folder is not the one it is called from
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"python:{name}: no module '{error.name}' here. Run in the folder that holds it, or install its package."
        ) from error
    builder = getattr(module, function, None)
    if not callable(builder):
        raise ConfigError(f"python:{name}: '{module_name}' has no function '{function}'.")
    model: nn.Module = builder(**arguments)
    return model


def _nearest(name: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches

    names = list(known)
    close = get_close_matches(name, names, n=5, cutoff=0.5) or names[:5]
    return f"Nearest of its {len(names)}: {', '.join(close)}."
