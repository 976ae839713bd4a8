"""Batch norms folded into the convolutions before them: in eval mode the two are one convolution.

gamma (W * x + b - mean) / sqrt(var + eps) + beta  =  (s W) * x + s (b - mean) + beta,  with s = gamma / sqrt(var + eps)

The weights stay what they are, so that gradients reach all of them; only the work per activation is saved.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from secateur.record import Op, Trace, Value
from secateur.tensors import wide

_CONVOLUTION = torch.ops.aten.convolution.default
BATCH_NORMS = {
    getattr(torch.ops.aten, name).default
    for name in ("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training")
}


def find_folds(trace: Trace) -> dict[int, Op]:
    """By the index of a convolution: the batch norm in eval mode that alone reads its result.

    Transposed convolutions are left out: their weights hold the output's channels along another axis.
    """
    makers = {op.outputs[0].index: op for op in trace.ops if op.target is _CONVOLUTION and op.outputs[0] is not None}
    n_reads = Counter(v.index for op in trace.ops for v in op.values)
    n_reads.update(v.index for v in trace.outputs)
    found = {}
    for op in trace.ops:
        if op.target not in BATCH_NORMS or any(a is True for a in op.args):  # in training, by the batch
            continue
        x, mean = op.args[0], op.args[3]
        maker = makers.get(x.index)
        if maker is not None and n_reads[x.index] == 1 and not maker.args[6] and isinstance(mean, Value):
            found[maker.index] = op
    return found


def folded(convolution: Op, norm: Op, read: Callable[[Any], Any]) -> tuple[Any, ...]:
    """The arguments of the convolution that gives what the batch norm behind it gave.

    Args:
        read: the tensor of a value; anything else as it is.
    """
    x, weight, bias, *others = (read(a) for a in convolution.args)
    gamma, beta = (None if a is None else wide(read(a)) for a in norm.args[1:3])
    mean, var = (wide(read(a)) for a in norm.args[3:5])
    scale = (var + norm.args[-1]).rsqrt()
    if gamma is not None:
        scale = scale * gamma
    shift = scale * (-mean if bias is None else wide(bias) - mean)
    if beta is not None:
        shift = shift + beta
    scaled = scale.view(-1, *[1] * (weight.dim() - 1)) * wide(weight)
    return x, scaled.to(weight.dtype), shift.to(weight.dtype), *others  # the types that the convolution took
