"""Secateur makes trained neural networks smaller and faster, and proves what that did.

plan = secateur.plan(model, inputs, secateur.Budget(macs=0.5))
small = secateur.apply(model, plan)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from secateur._version import __version__
from secateur.allocate import Budget, Global, Uniform
from secateur.criteria import CRITERIA, Criterion
from secateur.dims.rule import OP_RULES
from secateur.errors import SecateurError
from secateur.graph import Graph, trace
from secateur.planning import PruneConfig, plan
from secateur.plans import Plan, compose
from secateur.surgery import apply, apply_
from secateur.verification import VerifyReport, verify

if TYPE_CHECKING:
    from secateur.coding import bake
    from secateur.compensation import compensate_
    from secateur.compression import CompressConfig, Compressed, compress, run_steps
    from secateur.files import load, save
    from secateur.frameworks.export import ExportReport, export
    from secateur.steps.sparsify import Sparsify, sparsify

__all__ = [
    "CRITERIA",
    "OP_RULES",
    "Budget",
    "CompressConfig",
    "Compressed",
    "Criterion",
    "ExportReport",
    "Global",
    "Graph",
    "Plan",
    "PruneConfig",
    "SecateurError",
    "Sparsify",
    "Uniform",
    "VerifyReport",
    "__version__",
    "apply",
    "apply_",
    "bake",
    "compensate_",
    "compose",
    "compress",
    "export",
    "load",
    "plan",
    "run_steps",
    "save",
    "sparsify",
    "trace",
    "verify",
]

# What trains, stores and exports is imported when it is first asked for, so that `import secateur` stays quick.
_LATER = {
    "bake": "secateur.coding",
    "run_steps": "secateur.compression",
    "CompressConfig": "secateur.compression",
    "Compressed": "secateur.compression",
    "ExportReport": "secateur.frameworks.export",
    "Sparsify": "secateur.steps.sparsify",
    "compensate_": "secateur.compensation",
    "compress": "secateur.compression",
    "export": "secateur.frameworks.export",
    "load": "secateur.files",
    "save": "secateur.files",
    "sparsify": "secateur.steps.sparsify",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module 'secateur' has no attribute {name!r}")
