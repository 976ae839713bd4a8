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
    ],
)
def test_timm_classifier(name: str, side: int, options: dict[str, Any]) -> None:
    prune_and_prove(timm.create_model(name, pretrained=False, **options), torch.randn(2, 3, side, side))
