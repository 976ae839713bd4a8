"""Which type products are computed in: asked for, or what the device is fast in."""

import logging

import pytest
import torch

from secateur import precision
from secateur.errors import ConfigError
from secateur.precision import has_bf16_units, product_dtype


@pytest.mark.parametrize(
    ("asked", "has_units", "found"),
    [
        ("fp32", True, None),
        ("fp32", False, None),
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.bfloat16),
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
    ],
)
def test_what_is_asked_and_what_the_device_has_make_the_type(monkeypatch, asked, has_units, found):
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: has_units)
    assert product_dtype(asked, "cpu") == found


def test_bf16_without_units_is_warned_of_once(monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_bf16_units", lambda device: False)
    precision._warn_of.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            product_dtype("bf16", "cpu")
        product_dtype("auto", "cpu")
    (record,) = caplog.records
    assert "bfloat16" in record.message
    assert "auto" in record.message


def test_units_are_those_that_the_processor_names(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False}, raising=False)
    assert not has_bf16_units("cpu")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"bf16": True}, raising=False)
    assert has_bf16_units(torch.device("cpu"))
    assert not has_bf16_units("meta")


def test_other_names_are_errors():
    with pytest.raises(ConfigError, match="'fp16' is none of fp32, bf16, auto"):
        product_dtype("fp16", "cpu")
