"""Scores of a checkpoint that is read one tensor at a time: each tensor once, in the order of the files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from secateur.criteria import L1, L2, Context, Criterion, score_groups
from secateur.criteria.base import needs_of
from secateur.criteria.options import normalized
from secateur.dims.groups import Group, Member
from secateur.errors import ConfigError, GroupError


def stream_scores(
    groups: Sequence[Group], criterion: Criterion, tensors: Mapping[str, Tensor], *, seed: int = 0
) -> dict[str, Tensor]:
    """Score groups as `score_groups` does, without holding more than one tensor where the criterion is a magnitude.

    Args:
        tensors: by key, each read when it is asked for; what is not there (buffers) does not count.
    Raises:
        ConfigError: the criterion measures on data, which takes a whole model.
        GroupError: weights hold NaN or Inf.
    """
    if needs_of(criterion):
        raise ConfigError(
            f"Criterion '{criterion.name}' measures on data with a loaded model. Choose l1, l2 or random for a folder,"
            " or load the model and use secateur.plan."
        )
    if isinstance(criterion, L1 | L2):
        return _magnitudes(groups, criterion, tensors)
    constants = frozenset(m.key for g in groups for m in g.members if m.key not in tensors)
    generator = torch.Generator().manual_seed(seed)
    return score_groups(groups, criterion, Context(tensors, generator=generator, constants=constants))


def _magnitudes(groups: Sequence[Group], criterion: L1 | L2, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """score[c] = p-norm over members of the p-norms of their rows c, as `magnitude_scores` adds them up."""
    places: dict[str, list[tuple[Group, Member, int]]] = {}
    norms: dict[str, Tensor] = {}
    for group in groups:
        members = [m for m in group.members if m.role in criterion.roles and m.key in tensors]
        if not members:
            raise GroupError(f"Group '{group.name}' has no weight of roles {', '.join(criterion.roles)}.")
        # Made before the large temporaries: small results between those would keep their memory from being used again.
        norms[group.name] = torch.empty(len(members), group.size)
        for row, member in enumerate(members):
            places.setdefault(member.key, []).append((group, member, row))
    for key in (key for key in tensors if key in places):
        tensor = tensors[key]
        for group, member, row in places[key]:
            rows = member.view(tensor).reshape(group.size, -1)
            norm = norms[group.name][row]
            norm.copy_(torch.linalg.vector_norm(rows.float(), criterion.p, dim=1))
            if not torch.isfinite(norm).all():
                raise GroupError(f"'{key}' holds NaN or Inf. Repair these weights before pruning.")
    return {
        name: normalized(torch.linalg.vector_norm(table, criterion.p, dim=0), criterion.normalize)
        for name, table in norms.items()
    }
