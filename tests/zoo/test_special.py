"""Networks by hand: recurrence, torch's transformer, parametrizations, raw parameters, shared modules, experts."""

from __future__ import annotations

import pytest

from .proof import prune_and_prove

pytestmark = pytest.mark.filterwarnings("ignore")


def _zoo():
    from zoo import special

    return special


@pytest.mark.parametrize("name", _zoo().names())
def test_half_of_every_width_goes_and_the_proof_holds(name: str) -> None:
    prune_and_prove(*_zoo().build(name))
