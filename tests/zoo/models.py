"""Tiny models of every architecture of the zoo, with random weights: from a tokenizer's ids and hidden units."""

from typing import Any

from tokenizers import Tokenizer
from transformers import (
    CLIPVisionConfig,
    InternVLConfig,
    InternVLForConditionalGeneration,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION_PINPOINTS = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]


def _padded(tokenizer: Tokenizer) -> int:
    """Rows of the embeddings: more than the tokenizer has ids, as in all of these checkpoints."""
    return tokenizer.get_vocab_size() // 64 * 64 + 64


def _vision() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=336,
        patch_size=14,
        projection_dim=32,
    )


def _language(kind: type[PreTrainedConfig], hidden_size: int, **fields: Any) -> PreTrainedConfig:
    return kind(
        **{
            "hidden_size": hidden_size,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": hidden_size // 4,
            "initializer_range": 0.3,
            "rms_norm_eps": 1e-5,
        }
        | fields
    )


def llava_1_5(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    fields = {"vocab_size": _padded(tokenizer), "max_position_embeddings": 4096, "num_key_value_heads": 4}
    text = _language(LlamaConfig, hidden_size, **fields)
    config = LlavaConfig(
        vision_config=_vision(),
        text_config=text,
        image_token_index=tokenizer.token_to_id("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        pad_token_id=tokenizer.token_to_id("<pad>"),
    )
    return LlavaForConditionalGeneration(config)


def _llava_next(tokenizer: Tokenizer, text: PreTrainedConfig) -> PreTrainedModel:
    config = LlavaNextConfig(
        vision_config=_vision(),
        text_config=text,
        image_grid_pinpoints=PINPOINTS,
        image_token_index=tokenizer.token_to_id("<image>"),
        projector_hidden_act="gelu",
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        use_image_newline_parameter=True,
        pad_token_id=tokenizer.token_to_id("<pad>"),
        tie_word_embeddings=False,
    )
    return LlavaNextForConditionalGeneration(config)


def llava_next_mistral(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    fields = {"vocab_size": _padded(tokenizer), "max_position_embeddings": 32768, "sliding_window": None}
    return _llava_next(tokenizer, _language(MistralConfig, hidden_size, rope_theta=1e6, **fields))


def llava_next_llama_3(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    fields = {"vocab_size": _padded(tokenizer), "max_position_embeddings": 8192, "rope_theta": 500000.0}
    fields |= {"bos_token_id": tokenizer.token_to_id("<|begin_of_text|>")}
    fields |= {"eos_token_id": tokenizer.token_to_id("<|end_of_text|>")}
    return _llava_next(tokenizer, _language(LlamaConfig, hidden_size, **fields))


def llava_onevision(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    config = LlavaOnevisionConfig(
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 384,
            "patch_size": 14,
            "vision_use_head": False,
        },
        text_config=_qwen_2(tokenizer, hidden_size, tie_word_embeddings=True),
        image_token_index=tokenizer.token_to_id("<image>"),
        video_token_index=tokenizer.token_to_id("<video>"),
        image_grid_pinpoints=ONEVISION_PINPOINTS,
        projector_hidden_act="gelu",
        vision_aspect_ratio="anyres_max_9",
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        use_image_newline_parameter=True,
        tie_word_embeddings=True,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def internvl_3(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e6}
    config = InternVLConfig(
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "attention_bias": True,
            "image_size": [448, 448],
            "patch_size": [14, 14],
            "initializer_range": 0.3,
        },
        text_config=_qwen_2(tokenizer, hidden_size, rope_parameters=rope),
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=256,
        downsample_ratio=0.5,
        projector_hidden_act="gelu",
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    return InternVLForConditionalGeneration(config)


def _qwen_2(tokenizer: Tokenizer, hidden_size: int, **fields: Any) -> PreTrainedConfig:
    fields |= {"vocab_size": _padded(tokenizer), "max_position_embeddings": 32768, "rms_norm_eps": 1e-6}
    fields |= {"use_sliding_window": False, "bos_token_id": tokenizer.token_to_id("<|endoftext|>")}
    return _language(Qwen2Config, hidden_size, eos_token_id=tokenizer.token_to_id("<|im_end|>"), **fields)


def qwen2_5_vl(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    unit = hidden_size // 64
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": _padded(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128000,
            "initializer_range": 0.3,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e6,
                "mrope_section": [2 * unit, 3 * unit, 3 * unit],
            },
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "use_sliding_window": False,
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "fullatt_block_indexes": [1],
            "window_size": 112,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "tokens_per_second": 2,
            "initializer_range": 0.3,
        },
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(tokenizer: Tokenizer, hidden_size: int) -> PreTrainedModel:
    unit = hidden_size // 64
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": _padded(tokenizer),
            "hidden_size": hidden_size,
            "head_dim": 16 * unit,
            "intermediate_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 262144,
            "initializer_range": 0.3,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [4 * unit, 2 * unit, 2 * unit],
                "mrope_interleaved": True,
            },
            "bos_token_id": tokenizer.token_to_id("<|endoftext|>"),
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 3,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": hidden_size,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0, 1],
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
        },
        image_token_id=tokenizer.token_to_id("<|image_pad|>"),
        video_token_id=tokenizer.token_to_id("<|video_pad|>"),
        vision_start_token_id=tokenizer.token_to_id("<|vision_start|>"),
        vision_end_token_id=tokenizer.token_to_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config)
