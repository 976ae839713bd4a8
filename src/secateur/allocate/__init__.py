"""Allocation: scores and a budget in, the kept indices of every group out."""

from secateur.allocate.budget import Budget, Space
from secateur.allocate.curves import ErrorCurve, curve_of
from secateur.allocate.dynamic import DynamicProgram, knapsack
from secateur.allocate.isomorphic import Isomorphic, topology
from secateur.allocate.lagrangian import Lagrangian
from secateur.allocate.methods import ALLOCATIONS, AllocationMethod, Global, Uniform, make_method
from secateur.allocate.per_group import Quantile, TopN
from secateur.allocate.solve import Allocation, allocate
from secateur.dims.cost import Cost

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "AllocationMethod",
    "Budget",
    "Cost",
    "DynamicProgram",
    "ErrorCurve",
    "Global",
    "Isomorphic",
    "Lagrangian",
    "Quantile",
    "Space",
    "TopN",
    "Uniform",
    "allocate",
    "curve_of",
    "knapsack",
    "make_method",
    "topology",
]
