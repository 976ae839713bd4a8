"""`secateur sparsify`: masks that are saved and loaded, and that later commands keep."""

from __future__ import annotations

import json

import pytest

import secateur
from secateur.coding import codings_of

CNN = "builtin:digits_cnn?width=8"


@pytest.mark.parametrize("score", ["magnitude", "wanda", "sparsegpt", "taylor"])
def test_sparse_models_are_saved_and_loaded(run, tmp_path, score):
    args = ("--score", score, "--sparsity", "0.6", "--scope", "erk", "--data", "digits", "--output", tmp_path / "small")
    found = json.loads(run("sparsify", CNN, *args, "--json").out)
    n, zeros = (sum(fact[name] for fact in found["layers"].values()) for name in ("weights", "zeros"))
    assert zeros == round(0.6 * n)
    model = secateur.load(tmp_path / "small")
    for key, fact in found["layers"].items():
        assert int((model.get_submodule(key.removesuffix(".weight")).weight == 0).sum()) == fact["zeros"]
    assert list(codings_of(model)) == list(found["layers"])


def test_sparse_then_narrow_then_sparser(run, tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    shown = run("sparsify", CNN, "--pattern", "2:4", "--output", a)
    assert (shown.code, "50.0 %" in shown.out, "saved in" in shown.out) == (0, True, True)
    assert run("prune", a, "--budget", "width=0.5", "--output", b).code == 0
    again = json.loads(run("sparsify", b, "--sparsity", "0.8", "--output", c, "--json").out)
    assert all(fact["zeros"] >= round(0.8 * fact["weights"]) for fact in again["layers"].values())
    assert secateur.load(c) is not None


def test_what_is_wrong_is_said(run, tmp_path):
    for args, text in (
        (("--score", "wanda"), "'wanda' is measured on data"),
        (("--pattern", "2:4", "--sparsity", "0.9"), "has a sparsity of 0.5, not 0.9"),
        (("--pattern", "stripes"), "No pattern 'stripes'"),
    ):
        result = run("sparsify", CNN, "--output", tmp_path / "x", *args)
        assert (result.code, text in result.err) == (1, True)
