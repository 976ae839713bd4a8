"""A name with arguments in one text."""

from __future__ import annotations

import pytest

from secateur.allocate import Quantile, Uniform, make_method
from secateur.calls import read_call
from secateur.criteria import L1, make_criterion
from secateur.errors import ConfigError, RegistryError


def test_settings_follow_the_name():
    assert make_method("quantile?q=0.3&round_to=8") == Quantile(q=0.3, round_to=8)
    assert make_method("uniform") == Uniform()
    assert make_criterion("l1?roles=('producer',)&normalize='none'") == L1(roles=("producer",), normalize="none")
    assert read_call("resnet?a='x'&b=[1, 2]") == ("resnet", {"a": "x", "b": [1, 2]})


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (
            lambda: make_method("uniform?flor=0.2"),
            ConfigError,
            "method 'uniform' has no 'flor'. Known: floor, round_to",
        ),
        (lambda: make_method("uniform?floor=2"), ConfigError, "floor=2 is outside"),
        (lambda: make_criterion("random?seed=1"), ConfigError, "Criterion 'random' has no 'seed'. Known: nothing"),
        (lambda: make_criterion("l3?a=1"), RegistryError, "No criterion 'l3'"),
        (lambda: read_call("l1?"), ConfigError, r"'l1\?' ends in '\?'"),
        (lambda: read_call("l1?a"), ConfigError, "'a' is not one key=value"),
        (lambda: read_call("l1?a=1&a=2"), ConfigError, "'a=2' is not one key=value"),
        (lambda: read_call("l1?a=b"), ConfigError, "a=b is no Python literal"),
    ],
)
def test_what_can_not_be_read(build, error, text):
    with pytest.raises(error, match=text):
        build()
