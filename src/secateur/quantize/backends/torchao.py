"""Int8 and int4 linear layers of torchao, in eager PyTorch."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import ConfigError
from secateur.measure.modes import device_of
from secateur.quantize.backends.realised import BACKENDS, Prepared, quiet
from secateur.surgery import copy_model
from secateur.tensors import Inputs, as_call

log = logging.getLogger(__name__)


def int8_dynamic(model: nn.Module) -> nn.Module:
    """A copy whose linear layers multiply in int8: weights per channel, activations scaled row by row as they come.

    Raises:
        ConfigError: torchao is not installed, or has no kernel for this model's device and dtype.
    """
    return _quantized(model, "Int8DynamicActivationInt8WeightConfig")


def int4_weights(model: nn.Module, group_size: int = 128) -> nn.Module:
    """A copy whose linear layers hold int4 weights, a scale for each group of inputs, and compute in bfloat16.

    Raises:
        ConfigError: torchao is not installed, has no kernel for this model's device, or no layer's inputs are whole
            groups.
    """
    form = "plain_int32" if device_of(model).type == "xpu" else "tile_packed_to_4d"
    return _quantized(
        copy_model(model).bfloat16(), "Int4WeightOnlyConfig", group_size=group_size, int4_packing_format=form
    )


@BACKENDS.register("torchao int8 dynamic")
@contextlib.contextmanager
def _int8(model: nn.Module, inputs: Inputs, batches: Sequence[Inputs]) -> Iterator[Prepared]:
    yield _prepared(model, int8_dynamic(model), inputs)


@BACKENDS.register("torchao int4 weights")
@contextlib.contextmanager
def _int4(model: nn.Module, inputs: Inputs, batches: Sequence[Inputs]) -> Iterator[Prepared]:
    small = int4_weights(model)
    halved = pytree.tree_map_only(Tensor, lambda t: t.bfloat16() if t.is_floating_point() else t, inputs)
    yield _prepared(copy_model(model).bfloat16(), small, halved)


def _prepared(model: nn.Module, small: nn.Module, inputs: Inputs) -> Prepared:
    args, kwargs = as_call(inputs)
    return Prepared(
        runtime=f"eager PyTorch {torch.__version__}, torchao {version('torchao')}",
        float_call=lambda: model(*args, **kwargs),
        small_call=lambda: small(*args, **kwargs),
        float_bytes=_n_bytes(model),
        small_bytes=_n_bytes(small),
    )


def _quantized(model: nn.Module, config: str, **settings: Any) -> nn.Module:
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise ConfigError(f"{type(model).__name__} has no linear layer, and torchao quantizes nothing else.")
    small = copy_model(model).eval()
    with quiet("torch.utils._pytree"):  # importing it warns about its own insides
        try:
            tool: Any = importlib.import_module("torchao.quantization")
        except ImportError as error:
            raise ConfigError("torchao is not installed. Get it with: pip install 'secateur[torchao]'") from error
        try:
            tool.quantize_(small, getattr(tool, config)(**settings))
        except Exception as error:  # each kernel complains in its own way
            where = f"{device_of(model)} in {next(model.parameters()).dtype}".replace("torch.", "")
            raise ConfigError(
                f"torchao {version('torchao')} has no {config} for {where}: {type(error).__name__}: {error}."
            ) from error
    _check_coded(small, config, settings)
    return small


def _check_coded(model: nn.Module, config: str, settings: Mapping[str, Any]) -> None:
    """Torchao leaves layers alone whose shape does not fit, and says nothing: all of them is an error here."""
    layers = {fqn: module for fqn, module in model.named_modules() if isinstance(module, nn.Linear)}
    left = [fqn for fqn, layer in layers.items() if not hasattr(layer.weight, "__tensor_flatten__")]
    if len(left) == len(layers):
        raise ConfigError(
            f"torchao {version('torchao')} left every linear layer as it is: {config} with {dict(settings)} fits none,"
            f" such as '{left[0]}' of shape {list(layers[left[0]].weight.shape)}."
        )
    if left:
        log.warning("torchao left %d of %d linear layers as they are, such as '%s'", len(left), len(layers), left[0])


def _n_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, with what torchao's tensors hold inside."""
    found = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(_held(t) for t in found.values())


def _held(tensor: Any) -> int:
    inner = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else []
    return sum(_held(getattr(tensor, name)) for name in inner) if inner else int(tensor.nbytes)
