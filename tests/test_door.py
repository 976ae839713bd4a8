"""The door: what `import secateur` offers, and what it must not drag in."""

import subprocess
import sys

import secateur

NAMES = """
CRITERIA CompressConfig Compressed Criterion ExportReport Budget Global Graph OP_RULES Plan PruneConfig SecateurError
Sparsify Uniform VerifyReport __version__ apply apply_ bake compensate_ compose compress export load plan run_steps
save sparsify trace verify
"""


def test_the_names_are_those_that_are_documented():
    assert sorted(secateur.__all__) == sorted(NAMES.split())
    assert all(hasattr(secateur, name) for name in secateur.__all__)


def test_importing_brings_torch_and_nothing_heavier():
    code = "import sys, secateur; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = ["sklearn", "accelerate", "rich", "typer", "torchvision", "timm", "transformers", "onnx", "PIL"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
