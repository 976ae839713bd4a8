"""A `config.json` whose layers differ: lists where a class takes them, Transformers' `per_layer_config` elsewhere.

Which number counts what is found for layers that are alike (`Fit`); here each layer gets its own value of it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from secateur.dims.groups import Group
from secateur.frameworks.huggingface_config import Fit
from secateur.frameworks.huggingface_fields import PER_LAYER, Field, Width, layer_of, put_number, roles_of
from secateur.relations import impose


@dataclass(frozen=True)
class LayerFields:
    """What a config can say of each layer.

    Attributes:
        data: the dense `config.json`. spelled: the same with what its class fills in.
        fields: numbers by what they count; only those that a model follows when all layers change alike.
        roles: alike groups of the layers.
    """

    data: dict[str, Any]
    spelled: dict[str, Any]
    fields: dict[Field, Width]
    roles: dict[str, list[Group]]

    def config_data(self, counts: Mapping[str, int]) -> dict[str, Any]:
        """`config.json` for these counts of the groups, by name."""
        data = copy.deepcopy(self.data)
        for path, width in self.fields.items():
            values, own = self._by_layer(width, counts), _layer_of_field(path)
            if own in values or len(set(values.values())) == 1:
                number = values[own] if own in values else next(iter(values.values()))
                put_number(data, self.spelled, path, number)
            elif own is None:
                for layer, number in values.items():
                    put_number(data, self.spelled, self._in_layer(path, layer), number)
        return data

    def _by_layer(self, width: Width, counts: Mapping[str, int]) -> dict[int, int]:
        """The number that each layer has; none where groups of one layer would need several."""
        factors: list[dict[int, int]] = []
        constant = width.constant
        for groups in (self.roles[role] for role in width.roles):
            sizes = [(layer_of(g.name) or 0, counts.get(g.name, g.size)) for g in groups]
            if len(dict(sizes)) < len(set(sizes)):
                return {}
            if len(groups) > 1:
                factors.append(dict(sizes))
            else:  # of no layer, so the same in each
                constant *= sizes[0][1]
        layers = sorted(set.intersection(*map(set, factors))) if factors else [0]
        return {i: constant * math.prod(factor[i] for factor in factors) for i in layers}

    def _in_layer(self, path: Field, layer: int) -> Field:
        holder: Any = self.spelled
        for name in path[:-1]:
            holder = holder[name]
        key = next((k for k in holder.get(PER_LAYER, ()) if int(k) == layer), str(layer))  # it may be "03"
        return (*path[:-1], PER_LAYER, key, path[-1])


def find_layer_fields(fit: Fit) -> LayerFields:
    """Run a fit, in which all layers are alike, and give its graph back as it was."""
    give_back = impose(fit.graph, (), "")
    roles = roles_of(fit.graph)
    fit.run()
    known = roles_of(fit.graph).keys()
    fields = {path: width for path, width in fit.fields.items() if known >= set(width.roles)}
    give_back()
    return LayerFields(fit.data, fit.spelled, fields, roles)


def _layer_of_field(path: Field) -> int | None:
    """The layer of a number that is of one alone: an element of a list, or in `per_layer_config`."""
    if isinstance(path[-1], int):
        return path[-1]
    return int(path[-2]) if PER_LAYER in path else None
