"""Sparsity: which weights of a layer become zero. Patterns, scores and scopes are frozen dataclasses in registries."""

from __future__ import annotations

from secateur.sparsity.choice import Choice
from secateur.sparsity.patterns import NM, PATTERNS, Block, Pattern, Unstructured, make_pattern
from secateur.sparsity.scopes import ERK, SCOPES, AllLayers, Lamp, PerLayer, PerOutput, Scope
from secateur.sparsity.scores import SCORES, Magnitude, Score, SparseGPT, Taylor, Wanda

__all__ = [
    "ERK",
    "NM",
    "PATTERNS",
    "SCOPES",
    "SCORES",
    "AllLayers",
    "Block",
    "Choice",
    "Lamp",
    "Magnitude",
    "Pattern",
    "PerLayer",
    "PerOutput",
    "Scope",
    "Score",
    "SparseGPT",
    "Taylor",
    "Unstructured",
    "Wanda",
    "make_pattern",
]
