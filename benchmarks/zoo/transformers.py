"""Architectures of Hugging Face Transformers, from small random configs, each under the name of its class."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_SIZES = {"hidden_size": 96, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 8}
_TEXT = {**_SIZES, "vocab_size": 120, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_GQA = {**_TEXT, "num_key_value_heads": 4}
_EXPERTS = {"experts_implementation": "eager"}  # the other implementations are one opaque operator each
_VISION = {**_SIZES, "image_size": 32, "patch_size": 8, "num_labels": 10}
_SPEECH = {
    **_SIZES, "conv_dim": (32, 48), "conv_stride": (5, 2), "conv_kernel": (10, 3), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "vocab_size": 40, "num_labels": 10,
}  # fmt: skip
_BART = {
    "d_model": 96, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 8,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 160, "decoder_ffn_dim": 160, "vocab_size": 120,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1,
}  # fmt: skip
_T5 = {
    "d_model": 96, "d_kv": 12, "d_ff": 160, "num_layers": 2, "num_heads": 8, "vocab_size": 120,
    "decoder_start_token_id": 0,
}  # fmt: skip

_DECODERS: dict[str, dict[str, Any]] = {
    "Llama": _GQA,
    "Mistral": {**_GQA, "head_dim": 12},
    "Qwen2": _GQA,
    "Qwen3": {**_GQA, "head_dim": 16},
    "Gemma": {**_GQA, "head_dim": 16},
    "Gemma2": {**_GQA, "head_dim": 16, "query_pre_attn_scalar": 16},
    "Gemma3": {**_GQA, "head_dim": 16},
    "Phi": _GQA,
    "Phi3": _GQA,
    "Olmo": _GQA,
    "Olmo2": _GQA,
    "SmolLM3": _GQA,
    "StableLm": {**_GQA, "partial_rotary_factor": 0.5},
    "Starcoder2": _GQA,
    "Cohere": _GQA,
    "Granite": _GQA,
    "Glm": {**_GQA, "head_dim": 12},
    "Falcon": {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 120},
    "Bloom": {"hidden_size": 96, "n_layer": 2, "n_head": 8, "vocab_size": 120},
    "OPT": {
        "hidden_size": 96, "ffn_dim": 160, "num_hidden_layers": 2, "num_attention_heads": 8, "vocab_size": 120,
        "word_embed_proj_dim": 96, "max_position_embeddings": 64,
    },
    "GPT2": {"n_embd": 96, "n_layer": 2, "n_head": 8, "n_inner": 160, "vocab_size": 120, "n_positions": 64},
    "GPTNeoX": _TEXT,
    "GPTJ": {
        "n_embd": 96, "n_layer": 2, "n_head": 8, "n_inner": 160, "vocab_size": 120, "n_positions": 64, "rotary_dim": 8,
    },
    "Mixtral": {**_GQA, **_EXPERTS, "num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {
        **_GQA, **_EXPERTS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 80,
        "shared_expert_intermediate_size": 112,
    },
    "Qwen3Moe": {
        **_GQA, **_EXPERTS, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 80,
    },
    "Olmoe": {**_GQA, **_EXPERTS, "num_experts": 4, "num_experts_per_tok": 2},
    "GptOss": {
        **_GQA, **_EXPERTS, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "DeepseekV3": {
        **_TEXT, **_EXPERTS, "num_key_value_heads": 8, "moe_intermediate_size": 80, "n_routed_experts": 4, "n_group": 1,
        "topk_group": 1, "num_experts_per_tok": 2, "q_lora_rank": 24, "kv_lora_rank": 20, "qk_rope_head_dim": 8,
        "v_head_dim": 12, "qk_nope_head_dim": 16, "first_k_dense_replace": 1,
    },
    "Mamba": {"hidden_size": 96, "num_hidden_layers": 2, "vocab_size": 120, "state_size": 12},
    "Mamba2": {
        "hidden_size": 96, "num_hidden_layers": 2, "vocab_size": 120, "state_size": 12, "num_heads": 8, "head_dim": 24,
        "n_groups": 2, "chunk_size": 8,
    },
}  # fmt: skip
_ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": _TEXT,
    "Roberta": {**_TEXT, "max_position_embeddings": 64},
    "DistilBert": {"dim": 96, "hidden_dim": 160, "n_layers": 2, "n_heads": 8, "vocab_size": 120},
    "Albert": {**_TEXT, "embedding_size": 32},
    "Electra": {**_TEXT, "embedding_size": 32},
    "DebertaV2": {
        **_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8,
        "max_relative_positions": 16, "norm_rel_ebd": "layer_norm", "position_biased_input": False,
    },
    "MPNet": _TEXT,
    "ModernBert": {**_TEXT, "cls_token_id": 1, "sep_token_id": 2},
    "RoFormer": {**_TEXT, "embedding_size": 96},
    "SqueezeBert": {**_TEXT, "embedding_size": 96},
}  # fmt: skip
_IMAGES: dict[str, dict[str, Any]] = {
    "ViT": _VISION,
    "DeiT": _VISION,
    "Dinov2": {**_VISION, "mlp_ratio": 2},
    "Beit": _VISION,
    "Swin": {
        "image_size": 64, "patch_size": 4, "embed_dim": 48, "depths": [2, 2], "num_heads": [4, 8], "window_size": 4,
        "num_labels": 10,
    },
    "Swinv2": {
        "image_size": 64, "patch_size": 4, "embed_dim": 48, "depths": [2, 2], "num_heads": [4, 8], "window_size": 4,
        "num_labels": 10,
    },
    "Segformer": {
        "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "hidden_sizes": [32, 64],
        "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [2, 4], "mlp_ratios": [4, 4], "num_labels": 10,
    },
    "ConvNext": {"depths": [1, 2], "hidden_sizes": [32, 64], "num_stages": 2, "num_labels": 10},
    "ConvNextV2": {"depths": [1, 2], "hidden_sizes": [32, 64], "num_stages": 2, "num_labels": 10},
    "ResNet": {"embedding_size": 32, "hidden_sizes": [64, 96], "depths": [1, 2], "num_labels": 10},
}  # fmt: skip
_OTHERS = (
    "MiniLMForSequenceClassification", "T5ForConditionalGeneration", "BartForConditionalGeneration",
    "PegasusForConditionalGeneration", "WhisperForConditionalGeneration", "Wav2Vec2ForCTC", "HubertForCTC",
    "CLIPModel", "SiglipModel", "DetrForObjectDetection", "SegformerForSemanticSegmentation",
)  # fmt: skip
PRELOAD: tuple[str, ...] = ("transformers.modeling_utils",)  # imported once, before the processes are forked


def names() -> list[str]:
    return [
        *(_causal(name) for name in _DECODERS),
        *(f"{name}ForMaskedLM" for name in _ENCODERS),
        *(f"{name}ForImageClassification" for name in _IMAGES),
        *_OTHERS,
    ]


def _causal(stem: str) -> str:
    return "GPT2LMHeadModel" if stem == "GPT2" else f"{stem}ForCausalLM"


def build(name: str) -> tuple[nn.Module, Any]:
    if name in _OTHERS:
        return _build_other(name)
    if name == "GPT2LMHeadModel":
        return _make(name, "GPT2Config", _DECODERS["GPT2"]), _inputs_of("ForCausalLM", _DECODERS["GPT2"])
    for suffix, table in (("ForCausalLM", _DECODERS), ("ForMaskedLM", _ENCODERS), ("ForImageClassification", _IMAGES)):
        if name.endswith(suffix):
            stem = name.removesuffix(suffix)
            config = "Gemma3Text" if stem == "Gemma3" else stem
            model = _make(name, f"{config}Config", table[stem])
            return model, _inputs_of(suffix, table[stem])
    raise KeyError(name)


def _inputs_of(suffix: str, sizes: dict[str, Any]) -> Any:
    if suffix == "ForImageClassification":
        return {"pixel_values": torch.randn(2, 3, sizes.get("image_size", 64), sizes.get("image_size", 64))}
    return {"input_ids": _ids(), **({"use_cache": False} if suffix == "ForCausalLM" else {})}


def _ids() -> Tensor:
    return torch.randint(3, 110, (2, 10))


def _make(model: str, config: str, sizes: dict[str, Any]) -> nn.Module:
    import transformers

    network: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**sizes))
    return network.eval()


def _build_other(name: str) -> tuple[nn.Module, Any]:
    text = {**_TEXT, "max_position_embeddings": 64}
    if name.startswith("MiniLM"):  # a narrow BERT with a pooler
        return _make("BertForSequenceClassification", "BertConfig", {**text, "num_labels": 10}), {"input_ids": _ids()}
    if name.startswith("T5"):
        return _make(name, "T5Config", {**_T5, "feed_forward_proj": "gated-gelu"}), _pair({"input_ids": _ids()})
    if name.startswith(("Bart", "Pegasus")):
        return _make(name, f"{name.removesuffix('ForConditionalGeneration')}Config", _BART), _pair(
            {"input_ids": _ids()}
        )
    if name.startswith("Whisper"):
        sizes = {**_BART, "num_mel_bins": 20, "max_source_positions": 16, "max_target_positions": 64}
        return _make(name, "WhisperConfig", sizes), _pair({"input_features": torch.randn(2, 20, 32)})
    if name.endswith("ForCTC"):
        sizes = {**_SPEECH, "feat_extract_norm": "group" if name.startswith("Wav2Vec2") else "layer"}
        return _make(name, f"{name.removesuffix('ForCTC')}Config", sizes), {"input_values": torch.randn(2, 1600)}
    if name.startswith(("CLIP", "Siglip")):
        vision = {key: value for key, value in _VISION.items() if key != "num_labels"}
        sizes = {"text_config": text, "vision_config": vision}
        if name.startswith("CLIP"):
            sizes["projection_dim"] = 40
        inputs = {"input_ids": _ids(), "pixel_values": torch.randn(2, 3, 32, 32)}
        return _make(name, name.replace("Model", "Config"), sizes), inputs
    if name.startswith("Segformer"):
        return _make(name, "SegformerConfig", {**_IMAGES["Segformer"], "decoder_hidden_size": 48}), {
            "pixel_values": torch.randn(2, 3, 64, 64)
        }
    return _detr(name)


def _pair(encoder: dict[str, Tensor]) -> dict[str, Any]:
    return {**encoder, "decoder_input_ids": _ids(), "use_cache": False}


def _detr(name: str) -> tuple[nn.Module, Any]:
    import transformers

    backbone = transformers.ResNetConfig(
        embedding_size=32, hidden_sizes=[32, 48, 64, 96], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    sizes = {key: value for key, value in _BART.items() if key not in ("vocab_size", "max_position_embeddings")}
    config = {**sizes, "backbone_config": backbone, "use_timm_backbone": False, "num_queries": 12, "num_labels": 10}
    return _make(name, "DetrConfig", config), {"pixel_values": torch.randn(2, 3, 64, 64)}
