"""Secateur makes trained neural networks smaller and faster, and proves what that did.

plan = secateur.plan(model, inputs, secateur.Budget(macs=0.5))
small = secateur.apply(model, plan)
"""

from secateur._version import __version__
from secateur.allocate import Budget, Global, Uniform
from secateur.compression import CompressConfig, Compressed, compress
from secateur.criteria import CRITERIA, Criterion
from secateur.dims.rule import OP_RULES
from secateur.errors import SecateurError
from secateur.files import load, save
from secateur.frameworks.export import ExportReport, export
from secateur.graph import Graph, trace
from secateur.planning import PruneConfig, plan
from secateur.plans import Plan, compose
from secateur.surgery import apply, apply_
from secateur.verification import VerifyReport, verify

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
    "Uniform",
    "VerifyReport",
    "__version__",
    "apply",
    "apply_",
    "compose",
    "compress",
    "export",
    "load",
    "plan",
    "save",
    "trace",
    "verify",
]
