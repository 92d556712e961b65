"""Architectures of transformers from small configurations: any attribute that names a size is set to a small one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo_models import Entry

VOCABULARY = 100
# sizes that configurations name; each model gets those that its configuration has
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "d_model": 32, "n_embd": 32, "dim": 32, "embed_dim": 32,
    "hidden_dim": 64,
    "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2, "num_layers": 2, "num_decoder_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "num_encoder_layers": 2, "num_attention_heads": 4, "n_head": 4, "n_heads": 4, "num_heads": 4,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 64,
    "ffn_dim": 64, "d_ff": 64, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "d_kv": 8, "head_dim": 8, "n_inner": 64,
    "max_position_embeddings": 64, "n_positions": 64, "n_ctx": 64, "max_sequence_length": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0, "use_cache": False, "image_size": 32,
    "patch_size": 8, "num_labels": 5, "num_local_experts": 4, "num_experts": 4, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24, "state_size": 4,
    "embedding_size": 16, "expert_capacity": 8, "use_mambapy": False, "use_mamba_kernels": False, "num_mel_bins": 16,
    "word_embed_proj_dim": 32, "ffn_hidden_size": 64, "d_inner": 64, "d_head": 8, "encoder_hidden_size": 32,
    "decoder_hidden_size": 32, "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64,
}  # fmt: skip


def tokens() -> dict[str, Any]:
    return {"input_ids": torch.randint(3, VOCABULARY - 5, (2, 8))}


def two_texts() -> dict[str, Any]:
    return tokens() | {"decoder_input_ids": torch.randint(3, VOCABULARY - 5, (2, 5))}


def picture(size: int = 32, channels: int = 3) -> Callable[[], dict[str, Any]]:
    return lambda: {"pixel_values": torch.randn(2, channels, size, size)}


def sound() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 1200)}


def spectrogram() -> dict[str, Any]:
    return {"input_values": torch.randn(2, 24, 16)}


def speech(frames: int = 24, bins: int = 16) -> dict[str, Any]:
    return {"input_features": torch.randn(2, bins, frames), "decoder_input_ids": torch.randint(3, 90, (2, 5))}


_CONVOLUTIONS: dict[str, Any] = {
    "conv_dim": (16, 16, 16), "conv_stride": (5, 2, 2), "conv_kernel": (10, 3, 3), "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "output_hidden_size": 32, "mask_time_prob": 0.0,
    "feat_extract_norm": "group",
}  # fmt: skip
_TEXT_AND_IMAGE: dict[str, Any] = {
    "text_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 100,
        "projection_dim": 16, "eos_token_id": 2, "max_position_embeddings": 64, "num_key_value_heads": 2, "head_dim": 8,
    },
    "vision_config": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
        "patch_size": 8, "projection_dim": 16,
    },
}  # fmt: skip


def both() -> dict[str, Any]:
    return tokens() | {"pixel_values": torch.randn(2, 3, 32, 32), "return_dict": True}


Spec = tuple[str, str, Callable[[], Any], dict[str, Any]]

LANGUAGE = (
    "llama gpt2 qwen2 qwen3 mistral gemma gemma2 gemma3_text phi phi3 gpt_neox gptj gpt_neo bloom opt falcon mpt "
    "codegen stablelm starcoder2 olmo olmo2 olmo3 cohere cohere2 granite glm glm4 helium nemotron smollm3 gpt_bigcode "
    "persimmon biogpt xglm openai-gpt ctrl exaone4 seed_oss arcee apertus diffllama "
    "mixtral qwen2_moe qwen3_moe olmoe granitemoe phimoe gpt_oss jetmoe "
    "mamba mamba2 falcon_mamba jamba bamba rwkv recurrent_gemma xlstm lfm2 qwen3_next"
).split()
ENCODERS = (
    "bert roberta albert electra distilbert deberta deberta-v2 mpnet convbert squeezebert funnel fnet nystromformer "
    "mobilebert modernbert roformer rembert megatron-bert xlm camembert ernie esm ibert layoutlm longformer big_bird "
    "xlnet mra yoso perceiver"
).split()
PAIRS = (
    "t5 mt5 umt5 bart mbart pegasus blenderbot m2m_100 led longt5 switch_transformers marian plbart prophetnet "
    "bigbird_pegasus fsmt nllb-moe"
).split()
IMAGES = (
    "vit deit beit swin swinv2 convnext convnextv2 resnet regnet poolformer segformer pvt pvt_v2 mobilevit mobilevitv2 "
    "mobilenet_v1 mobilenet_v2 efficientnet levit cvt focalnet dinov2 hiera hgnet_v2 swiftformer bit vit_msn"
).split()
SOUNDS = "wav2vec2 hubert wavlm unispeech unispeech-sat sew data2vec-audio wav2vec2-conformer".split()

# what single models need besides
MORE: dict[str, dict[str, Any]] = {
    "albert": {"num_hidden_groups": 1},
    "funnel": {"block_sizes": [1, 1, 1], "d_inner": 64},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8,
              "attn_layer_indices": [1]},
    "squeezebert": {"embedding_size": 32},
    "perceiver": {"d_latents": 32, "num_latents": 8, "num_blocks": 1, "num_self_attends_per_block": 2,
                  "qk_channels": 32,
                  "v_channels": 32, "num_self_attention_heads": 4, "num_cross_attention_heads": 4},
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
    "swinv2": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
    "focalnet": {"embed_dim": 16, "depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 48, 64], "patch_size": 4},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "patch_size": 4, "num_stages": 4},
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "patch_size": 4, "num_stages": 4},
    "resnet": {"hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 1, 1], "embedding_size": 16},
    "regnet": {"hidden_sizes": [16, 24, 32, 48], "depths": [1, 2, 1, 1], "embedding_size": 16, "groups_width": 8},
    "bit": {"hidden_sizes": [32, 64, 64, 96], "depths": [1, 2, 1, 1], "embedding_size": 32, "num_groups": 8},
    "segformer": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
                  "patch_sizes": [7, 3, 3, 3], "decoder_hidden_size": 16},
    "pvt": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
            "patch_sizes": [4, 2, 2, 2], "image_size": 32},
    "pvt_v2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 3, 4],
               "image_size": 32},
    "mobilevitv2": {"image_size": 64, "patch_size": 2},
    "mobilevit": {"hidden_sizes": [24, 32, 40], "neck_hidden_sizes": [8, 16, 24, 32, 40, 48, 64], "patch_size": 2},
    "efficientnet": {"hidden_dim": 640, "width_coefficient": 0.5, "depth_coefficient": 0.5},
    "levit": {"hidden_sizes": [32, 48, 64], "depths": [1, 1, 1], "num_attention_heads": [2, 3, 4], "key_dim": [8, 8, 8],
              "patch_size": 16, "image_size": 64},
    "cvt": {"embed_dim": [16, 24, 48], "num_heads": [1, 3, 6]},
    "hiera": {"embed_dim": 16, "image_size": [64, 64], "patch_size": [7, 7], "depths": [1, 1, 2, 1],
              "num_heads": [1, 2, 4, 8], "masked_unit_size": [8, 8]},
    "clip": _TEXT_AND_IMAGE, "siglip": _TEXT_AND_IMAGE, "chinese_clip": _TEXT_AND_IMAGE,
}  # fmt: skip


STAGED = ("convnext", "convnextv2", "cvt", "hiera", "levit")
# types for which the automatic class does not know which of two heads is meant
CLASSES = {"deit": "DeiTForImageClassification", "levit": "LevitForImageClassification"}


def specs() -> list[Spec]:
    """(type, kind of head, inputs, overrides)."""
    found: list[Spec] = [(n, "CausalLM", tokens, {}) for n in LANGUAGE]
    found += [(n, "SequenceClassification", tokens, {}) for n in ENCODERS]
    found += [(n, "Seq2SeqLM", two_texts, {}) for n in PAIRS]
    large = ("mobilevitv2", "mobilevit", "levit", "hiera")
    found += [(n, "ImageClassification", picture(64 if n in large else 32), {}) for n in IMAGES]
    found += [(n, "", both, {}) for n in ("clip", "siglip", "chinese_clip")]
    found += [("whisper", "SpeechSeq2Seq", speech, {"max_source_positions": 12, "max_target_positions": 20})]
    found += [
        ("audio-spectrogram-transformer", "AudioClassification", spectrogram, {"max_length": 24, "num_mel_bins": 16})
    ]
    found += [("glpn", "DepthEstimation", picture(64), {})]
    found += [("yolos", "ObjectDetection", picture(), {"image_size": [32, 32], "num_detection_tokens": 4})]
    found += [("vit_mae", "PreTraining", picture(), {}), ("upernet", "SemanticSegmentation", picture(), {})]
    found += [(n, "CTC", sound, _CONVOLUTIONS) for n in SOUNDS]
    return found


def build(kind: str, head: str, options: dict[str, Any]) -> nn.Module:
    """The model of a configuration type, small."""
    import transformers

    config_class = transformers.CONFIG_MAPPING[kind]
    default = vars(config_class())
    known = {
        name: default.get(config_class.attribute_map.get(name, name))
        for name in (*default, *config_class.attribute_map)
    }
    # a list of sizes has one for each stage: those are given one by one in `MORE`
    small = {n: v for n, v in SMALL.items() if n in known and not isinstance(known[n], list | tuple)}
    if kind in STAGED:
        small = {}
    config = config_class(**small | options | MORE.get(kind, {}))
    model: nn.Module
    if kind in CLASSES:
        model = getattr(transformers, CLASSES[kind])(config)
    else:
        model = getattr(transformers, f"AutoModelFor{head}" if head else "AutoModel").from_config(config)
    return model


def entries() -> list[Entry]:
    """All of them."""
    import transformers.modeling_utils  # noqa: F401  once, before the processes fork

    return [
        Entry(name=name, build=lambda n=name, h=head, o=options: build(n, h, o), inputs=inputs)  # type: ignore[misc]
        for name, head, inputs, options in specs()
    ]
