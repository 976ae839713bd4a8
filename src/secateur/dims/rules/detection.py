"""Operators of torchvision. They are registered by name, since its library may not be loaded."""

from __future__ import annotations

from secateur.dims.rule import OP_RULES, Axes, Node
from secateur.dims.rules.contraction import convolve


@OP_RULES.register("torchvision::roi_align", "torchvision::roi_pool")
def roi_align(op: Node, x: Axes, boxes: Axes, *args: float) -> None:
    """out[k, c, p] = x at bin p of box k, and of the image that boxes[k, 0] names"""
    op.freeze(x[0], "images that boxes name")
    for dim in (*x.dims[2:], boxes[1]):
        op.freeze(dim, "spatial")
    for value in op.op.outputs:  # pooling by maximum also says where it found it
        if value is not None:
            op.out(boxes[0], x[1], *(op.new(n, "spatial") for n in value.shape[2:]))


@OP_RULES.register("torchvision::deform_conv2d")
def deform_conv2d(op: Node, x: Axes, weight: Axes, offset: Axes, mask: Axes, bias: Axes, *args: int) -> None:
    """out[n, g o, p] = bias[g o] + sum_{i, q} mask[n, q, p] x[n, g i, p + q + offset[n, q, p]] weight[g o, i, q]"""
    group, offset_groups = op.new(args[6]), args[7]
    op.expect(11, group)
    for t in (offset, mask):
        if t[0].size > 1:
            op.equate(x[0], t[0])
        for dim in t.dims[1:]:
            op.freeze(dim, "offsets of a kernel")
    if offset_groups > 1:
        op.freeze(x[1], "channels that share an offset")
    convolve(op, x, weight, bias, group)
