"""A few architectures of Hugging Face Transformers from small random configs, among them every one that once failed."""

from __future__ import annotations

import pytest

from .proof import prune_and_prove

pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")


def _build(name: str):
    from zoo import transformers

    return transformers.build(name)


@pytest.mark.parametrize(
    "name",
    [
        "LlamaForCausalLM",
        "MixtralForCausalLM",
        "MambaForCausalLM",
        pytest.param("Mamba2ForCausalLM", marks=pytest.mark.slow),
        "BertForMaskedLM",
        "T5ForConditionalGeneration",
        "ViTForImageClassification",
    ],
)
def test_architecture(name: str) -> None:
    prune_and_prove(*_build(name))


@pytest.mark.parametrize(
    "name",
    [
        "Gemma2ForCausalLM",  # one number counts the rotary halves of q and k, and the plain head width of v
        "RoFormerForMaskedLM",  # the same with interleaved rotary pairs
        "DebertaV2ForMaskedLM",  # a width enters the arithmetic as a tensor; a constant's value is read
        "SegformerForSemanticSegmentation",  # installs hooks at its first forward, and remembers that it did
        pytest.param("GPTJForCausalLM", marks=pytest.mark.slow),  # rotary and plain channels in one head
        pytest.param("DeepseekV3ForCausalLM", marks=pytest.mark.slow),  # memory that nothing has written yet
    ],
)
def test_architecture_that_once_failed(name: str) -> None:
    prune_and_prove(*_build(name))
