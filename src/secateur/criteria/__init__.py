"""Criteria: one file per score, each a frozen dataclass. Larger = keep."""

from secateur.criteria.base import (
    CRITERIA,
    LEARNED,
    ROLES,
    Context,
    Criterion,
    FunctionCriterion,
    make_criterion,
    needs_of,
    score_groups,
)
from secateur.criteria.bn_scale import BnScale
from secateur.criteria.geometric_median import GeometricMedian
from secateur.criteria.gradients import collect_gradients, cross_entropy, next_token_cross_entropy
from secateur.criteria.lamp import Lamp
from secateur.criteria.magnitude import L1, L2
from secateur.criteria.random import Random
from secateur.criteria.redundancy import Cosine
from secateur.criteria.serialize import from_dict, to_dict
from secateur.criteria.taylor import Taylor

__all__ = [
    "CRITERIA",
    "L1",
    "L2",
    "LEARNED",
    "ROLES",
    "BnScale",
    "Context",
    "Cosine",
    "Criterion",
    "FunctionCriterion",
    "GeometricMedian",
    "Lamp",
    "Random",
    "Taylor",
    "collect_gradients",
    "cross_entropy",
    "from_dict",
    "make_criterion",
    "needs_of",
    "next_token_cross_entropy",
    "score_groups",
    "to_dict",
]
