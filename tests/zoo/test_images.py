"""A few networks of torchvision and timm, on small images; the whole zoos run in `benchmarks/prunability.py`."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .proof import prune_and_prove

torchvision = pytest.importorskip("torchvision")
timm = pytest.importorskip("timm")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_classifier(name: str) -> None:
    prune_and_prove(torchvision.models.get_model(name, weights=None), torch.randn(2, 3, 64, 64))


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("vit_tiny_patch16_224", 64, {"img_size": 64, "depth": 2}),
        ("swin_tiny_patch4_window7_224", 56, {"img_size": 56, "depths": (1, 2), "num_heads": (3, 6)}),
        ("test_mambaout", 96, {}),
        ("cpubone_nano", 64, {}),  # pools and attends over single pixels, which torch may take for channels-last
    ],
)
def test_timm_classifier(name: str, side: int, options: dict[str, Any]) -> None:
    prune_and_prove(timm.create_model(name, pretrained=False, **options), torch.randn(2, 3, side, side))


def _detector(name: str) -> Any:
    """torchvision's detectors around a backbone of two layers."""
    from torchvision.models import detection
    from torchvision.ops import FeaturePyramidNetwork

    class Backbone(torch.nn.Module):
        out_channels = 64

        def __init__(self) -> None:
            super().__init__()
            self.stem = torch.nn.Conv2d(3, 8, 3, stride=8)
            self.body = torch.nn.Conv2d(8, 12, 3, stride=2)
            self.pyramid = FeaturePyramidNetwork([8, 12], 64)

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            fine = self.stem(x).relu()
            return self.pyramid({"0": fine, "1": self.body(fine).relu()})

    anchors = detection.anchor_utils.AnchorGenerator(((16,), (32,)), ((0.5, 1.0),) * 2)
    options = {"min_size": 64, "max_size": 64}
    if name == "FCOS":
        anchors = detection.anchor_utils.AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    if name in ("FCOS", "RetinaNet"):
        return getattr(detection, name)(Backbone(), 5, anchor_generator=anchors, **options)
    options |= {"rpn_anchor_generator": anchors, "box_detections_per_img": 3, "rpn_post_nms_top_n_test": 10}
    return getattr(detection, name)(Backbone(), 5, **options)


@pytest.mark.parametrize("name", ["FasterRCNN", "MaskRCNN", "KeypointRCNN", "RetinaNet", "FCOS"])
def test_torchvision_detector(name: str) -> None:
    """They choose boxes by learned scores; two of them go on by the boxes' sizes as numbers."""
    prune_and_prove(_detector(name).eval(), ([torch.randn(3, 64, 64)],), trains=False)
