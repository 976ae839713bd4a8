"""Example inputs: the forms that they come in, and how they are written down."""

from __future__ import annotations

import json
import threading

import pytest
import torch

from secateur.errors import PlanError
from secateur.specs import from_spec, to_spec
from secateur.tensors import as_call

from .two_layers import X


@pytest.mark.parametrize(
    ("inputs", "call"),
    [(X, ((X,), {})), ((X, 1), ((X, 1), {})), ([X], ((X,), {})), ({"x": X}, ((), {"x": X}))],
    ids=["tensor", "tuple", "list", "dict"],
)
def test_inputs_come_in_three_forms(inputs, call):
    assert str(as_call(inputs)) == str(call)


def test_inputs_survive_as_data():
    inputs = {"ids": torch.tensor([[3, 9]]), "mask": torch.ones(1, 2, dtype=torch.bool), "more": [X, 2, None, "text"]}
    spec = json.loads(json.dumps(to_spec(inputs)))
    made = from_spec(spec)
    assert to_spec(made).keys() == inputs.keys()
    assert made["ids"].max() < 10
    assert (made["ids"].dtype, made["mask"].dtype, made["more"][0].shape) == (torch.int64, torch.bool, X.shape)
    assert made["more"][1:] == (2, None, "text")
    assert torch.equal(from_spec(spec)["more"][0], made["more"][0])


def test_inputs_that_are_no_data_are_refused():
    with pytest.raises(PlanError, match=r"An example input of type Lock|lock can't be written down"):
        to_spec((X, threading.Lock()))


def test_a_mask_of_ones_stays_one_in_the_proof():
    """Hugging Face's Llama takes another attention path where a mask hides something; this one hides nothing."""
    mask = {"x": torch.randn(2, 6), "mask": torch.ones(2, 6, dtype=torch.long), "ids": torch.tensor([3, 7])}
    again = from_spec(to_spec(mask))
    assert torch.equal(again["mask"], mask["mask"])
    assert again["ids"].min() >= 3
    assert again["ids"].max() <= 7
