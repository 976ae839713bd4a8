"""Halve the multiply-adds of torchvision's ResNet-18, prove the result, save it and load it again.

Weights are random here, so that nothing is downloaded; put yours in with `model.load_state_dict`.
Run: python examples/prune_resnet.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torchvision.models import resnet18

import secateur

SOURCE = "torchvision:resnet18"


def main(folder: Path) -> None:
    model, inputs = resnet18(weights=None).eval(), torch.randn(1, 3, 224, 224)
    plan = secateur.plan(model, inputs, secateur.Budget(macs=0.5))
    print(plan)
    small = secateur.apply(model, plan)  # verified: raises VerifyError otherwise
    print(secateur.verify(model, small, plan, inputs))
    saved = secateur.save(small, folder / "resnet18-half", plan=plan, source=SOURCE)
    again = secateur.load(saved)
    with torch.no_grad():
        difference = (again(inputs) - small(inputs)).abs().max()
    print("largest difference after loading:", difference.item())


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as there:
            main(Path(there))
