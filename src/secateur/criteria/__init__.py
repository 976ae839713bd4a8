"""Criteria: one file per score, each a frozen dataclass. Larger = keep."""

from secateur.criteria.activation_cosine import ActivationCosine
from secateur.criteria.activation_mean import ActivationMean
from secateur.criteria.activations import Activity, collect_activity, collect_products, collect_ranks
from secateur.criteria.apoz import Apoz
from secateur.criteria.base import (
    CRITERIA,
    LEARNED,
    ROLES,
    Context,
    Criterion,
    CurveCriterion,
    Curves,
    FunctionCriterion,
    make_criterion,
    needs_of,
    score_groups,
)
from secateur.criteria.bn_scale import BnScale
from secateur.criteria.elimination import Elimination
from secateur.criteria.fisher import Fisher
from secateur.criteria.gates import collect_gates, collect_model_gates
from secateur.criteria.geometric_median import GeometricMedian
from secateur.criteria.gradients import (
    collect_gradients,
    collect_squared_gradients,
    cross_entropy,
    next_token_cross_entropy,
)
from secateur.criteria.hrank import HRank
from secateur.criteria.kl import KL, collect_divergences
from secateur.criteria.kl_fisher import KLFisher
from secateur.criteria.lamp import Lamp
from secateur.criteria.magnitude import L1, L2
from secateur.criteria.measure import LABELLED, measure
from secateur.criteria.obd import Obd
from secateur.criteria.obs import Obs
from secateur.criteria.random import Random
from secateur.criteria.redundancy import Cosine
from secateur.criteria.sensitivity import SensitivityScan
from secateur.criteria.serialize import from_dict, to_dict
from secateur.criteria.taylor import Taylor
from secateur.criteria.taylor_activation import TaylorActivation
from secateur.criteria.taylor_second import TaylorSecond
from secateur.criteria.wanda import Wanda

__all__ = [
    "CRITERIA",
    "KL",
    "L1",
    "L2",
    "LABELLED",
    "LEARNED",
    "ROLES",
    "ActivationCosine",
    "ActivationMean",
    "Activity",
    "Apoz",
    "BnScale",
    "Context",
    "Cosine",
    "Criterion",
    "CurveCriterion",
    "Curves",
    "Elimination",
    "Fisher",
    "FunctionCriterion",
    "GeometricMedian",
    "HRank",
    "KLFisher",
    "Lamp",
    "Obd",
    "Obs",
    "Random",
    "SensitivityScan",
    "Taylor",
    "TaylorActivation",
    "TaylorSecond",
    "Wanda",
    "collect_activity",
    "collect_divergences",
    "collect_gates",
    "collect_gradients",
    "collect_model_gates",
    "collect_products",
    "collect_ranks",
    "collect_squared_gradients",
    "cross_entropy",
    "from_dict",
    "make_criterion",
    "measure",
    "needs_of",
    "next_token_cross_entropy",
    "score_groups",
    "to_dict",
]
