"""Every registered network of torchvision: classification, segmentation, detection, video, optical flow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_DETECTION = ("rcnn", "ssd", "retinanet", "fcos")
_VIDEO = ("r3d", "mc3", "r2plus1d", "s3d", "mvit", "swin3d")
_FIXED = {"inception_v3": 299, "maxvit_t": 224, "vit": 224, "swin": 224}
_SMALL = 128  # pixels; the networks whose name starts with none of the above take any size
PRELOAD: tuple[str, ...] = ("torchvision",)  # imported once, before the processes are forked


def names() -> list[str]:
    """As torchvision lists them, but quantized ones: those hold integers, which are pruned before they are made."""
    from torchvision import models

    return [name for name in models.list_models() if not name.startswith("quantized")]


def build(name: str) -> tuple[nn.Module, Any]:
    from torchvision import models

    options: dict[str, Any] = {"weights": None}
    if any(word in name for word in (*_DETECTION, "deeplab", "fcn", "lraspp")):
        options["weights_backbone"] = None
    if name == "googlenet":  # as its pretrained form is made: the training heads are off
        options |= {"aux_logits": False, "init_weights": False}
    if name == "inception_v3":
        options["init_weights"] = False
    return models.get_model(name, **options).eval(), inputs(name)


def inputs(name: str) -> Any:
    if name.startswith("raft"):
        return torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128)
    if any(word in name for word in _DETECTION):
        return ([torch.randn(3, 320, 320) for _ in range(_n_images(name))],)
    if any(word in name for word in _VIDEO):
        side = 112 if name in ("r3d_18", "mc3_18", "r2plus1d_18") else 224
        return torch.randn(1, 3, 16, side, side)
    side = next((side for start, side in _FIXED.items() if name.startswith(start)), _SMALL)
    return torch.randn(2, 3, side, side)


def _n_images(name: str) -> int:
    """SSDlite's last maps have one pixel, so that in training its batch norms need two images."""
    return 2 if name.startswith("ssdlite") else 1


def targets(name: str) -> Any:
    """What the detectors want in training mode, one dict per image; None for every other network."""
    if not any(word in name for word in _DETECTION):
        return None
    target: dict[str, Tensor] = {"boxes": torch.tensor([[30.0, 40.0, 200.0, 220.0]]), "labels": torch.tensor([1])}
    if name.startswith("mask"):
        target["masks"] = torch.ones(1, 320, 320, dtype=torch.uint8)
    if name.startswith("keypoint"):
        target["keypoints"] = torch.tensor([[[100.0, 100.0, 1.0]] * 17])
    return [target] * _n_images(name)
