"""Checkpoints shaped like those that people serve: published settings and templates, real tokenizers, tiny weights."""

from typing import Any

from tests.zoo.exhibit import Exhibit
from tests.zoo.models import (
    ONEVISION_PINPOINTS,
    PINPOINTS,
    internvl_3,
    llava_1_5,
    llava_next_llama_3,
    llava_next_mistral,
    llava_onevision,
    qwen2_5_vl,
    qwen3_vl,
)
from tests.zoo.templates import INTERNVL_3, LLAMA_3, MISTRAL, ONEVISION, QWEN, QWEN_3, VICUNA

_MEAN = [0.48145466, 0.4578275, 0.40821073]
_STD = [0.26862954, 0.26130258, 0.27577711]
_CLIP = {
    "crop_size": {"height": 336, "width": 336},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": _MEAN,
    "image_std": _STD,
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 336},
}
_NEXT = _CLIP | {
    "aspect_ratio_setting": "anyres",
    "do_pad": True,
    "image_grid_pinpoints": PINPOINTS,
    "image_processor_type": "LlavaNextImageProcessor",
    "processor_class": "LlavaNextProcessor",
}
_SIGLIP = {
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
_INTERNVL_NAMED = {
    "context_image_token": "<IMG_CONTEXT>",
    "end_image_token": "</img>",
    "start_image_token": "<img>",
    "video_token": "<video>",
}
_QWEN_3 = {
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
}


def _llama_tokenizer(**fields: Any) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "padding_side": "left",
        "model_max_length": 1000000000000000019884624838656,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "use_default_system_prompt": False,
        "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>",
    } | fields


def _qwen_tokenizer(**fields: Any) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "errors": "replace",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
    } | fields


def _processor(name: str) -> dict[str, Any]:
    return {
        "image_token": "<image>",
        "num_additional_image_tokens": 1,
        "patch_size": 14,
        "processor_class": name,
        "vision_feature_select_strategy": "default",
    }


ZOO: dict[str, Exhibit] = {
    "llava-1.5-vicuna": Exhibit(
        vocabulary="llama_2",
        model=llava_1_5,
        template=VICUNA,
        tokenizer=_llama_tokenizer(legacy=False, add_prefix_space=None, processor_class="LlavaProcessor"),
        generation={"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"},
        files={
            "preprocessor_config.json": _CLIP
            | {"image_processor_type": "CLIPImageProcessor", "processor_class": "LlavaProcessor"},
            "processor_config.json": _processor("LlavaProcessor"),
        },
    ),
    "llava-next-mistral": Exhibit(
        vocabulary="llama_2",
        model=llava_next_mistral,
        template=MISTRAL,
        tokenizer=_llama_tokenizer(legacy=True, add_prefix_space=True, processor_class="LlavaNextProcessor"),
        generation={"bos_token_id": "<s>", "eos_token_id": "</s>", "pad_token_id": "<pad>"},
        files={
            "preprocessor_config.json": _NEXT,
            "processor_config.json": _processor("LlavaNextProcessor"),
        },
    ),
    "llava-next-llama-3": Exhibit(
        vocabulary="llama_3_small",
        model=llava_next_llama_3,
        template=LLAMA_3,
        tokenizer={
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<pad>",
            "clean_up_tokenization_spaces": True,
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": 1000000000000000019884624838656,
            "padding_side": "left",
            "processor_class": "LlavaNextProcessor",
            "tokenizer_class": "PreTrainedTokenizerFast",
            "extra_special_tokens": {"image_token": "<image>"},
            "image_token": "<image>",
        },
        generation={
            "bos_token_id": "<|begin_of_text|>",
            "eos_token_id": ["<|end_of_text|>", "<|eot_id|>"],
            "pad_token_id": "<pad>",
        },
        files={
            "preprocessor_config.json": _NEXT,
            "processor_config.json": _processor("LlavaNextProcessor"),
        },
    ),
    "qwen2.5-vl": Exhibit(
        vocabulary="qwen_2_5_small",
        model=qwen2_5_vl,
        template=QWEN,
        tokenizer=_qwen_tokenizer(model_max_length=131072),
        generation={
            "bos_token_id": "<|endoftext|>",
            "pad_token_id": "<|endoftext|>",
            "eos_token_id": ["<|im_end|>", "<|endoftext|>"],
            "do_sample": True,
            "temperature": 0.000001,
            "repetition_penalty": 1.05,
        },
        files={
            "preprocessor_config.json": {
                "min_pixels": 3136,
                "max_pixels": 12845056,
                "patch_size": 14,
                "temporal_patch_size": 2,
                "merge_size": 2,
                "image_mean": _MEAN,
                "image_std": _STD,
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen2_5_VLProcessor",
            },
        },
    ),
    "llava-onevision": Exhibit(
        vocabulary="qwen_2_small",
        model=llava_onevision,
        template=ONEVISION,
        tokenizer=_qwen_tokenizer(
            model_max_length=32768,
            processor_class="LlavaOnevisionProcessor",
            image_token="<image>",
            video_token="<video>",
            extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        ),
        generation={"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>", "pad_token_id": "<|endoftext|>"},
        files={
            "preprocessor_config.json": {
                **_SIGLIP,
                "do_pad": True,
                "image_grid_pinpoints": ONEVISION_PINPOINTS,
                "image_processor_type": "LlavaOnevisionImageProcessor",
                "processor_class": "LlavaOnevisionProcessor",
            },
            "video_preprocessor_config.json": {
                **_SIGLIP,
                "image_processor_type": "LlavaOnevisionVideoProcessor",
                "processor_class": "LlavaOnevisionProcessor",
                "video_processor_type": "LlavaOnevisionVideoProcessor",
            },
            "processor_config.json": {
                "image_token": "<image>",
                "num_image_tokens": 729,
                "processor_class": "LlavaOnevisionProcessor",
                "video_token": "<video>",
                "vision_aspect_ratio": "anyres_max_9",
                "vision_feature_select_strategy": "full",
            },
        },
    ),
    "internvl-3": Exhibit(
        vocabulary="internvl_3_small",
        model=internvl_3,
        template=INTERNVL_3,
        template_file="chat_template.jinja",
        tokenizer=_qwen_tokenizer(
            model_max_length=8192, processor_class="InternVLProcessor", extra_special_tokens=_INTERNVL_NAMED
        )
        | _INTERNVL_NAMED,
        generation={"bos_token_id": "<|endoftext|>", "eos_token_id": "<|im_end|>"},
        files={
            "preprocessor_config.json": {
                "crop_size": None,
                "crop_to_patches": False,
                "data_format": "channels_first",
                "default_to_square": True,
                "do_center_crop": None,
                "do_convert_rgb": True,
                "do_normalize": True,
                "do_rescale": True,
                "do_resize": True,
                "image_mean": [0.485, 0.456, 0.406],
                "image_processor_type": "GotOcr2ImageProcessorFast",
                "image_std": [0.229, 0.224, 0.225],
                "max_patches": 12,
                "min_patches": 1,
                "processor_class": "InternVLProcessor",
                "resample": 3,
                "rescale_factor": 0.00392156862745098,
                "size": {"height": 448, "width": 448},
            },
            "processor_config.json": {"image_seq_length": 256, "processor_class": "InternVLProcessor"},
        },
    ),
    "qwen3-vl": Exhibit(
        vocabulary="qwen_3_small",
        model=qwen3_vl,
        template=QWEN_3,
        tokenizer=_qwen_tokenizer(model_max_length=262144),
        generation={
            "bos_token_id": "<|endoftext|>",
            "pad_token_id": "<|endoftext|>",
            "eos_token_id": ["<|im_end|>", "<|endoftext|>"],
            "do_sample": True,
            "top_k": 20,
            "top_p": 0.8,
            "repetition_penalty": 1.0,
            "temperature": 0.7,
        },
        files={
            "preprocessor_config.json": _QWEN_3
            | {
                "size": {"longest_edge": 16777216, "shortest_edge": 65536},
                "image_processor_type": "Qwen2VLImageProcessorFast",
            },
            "video_preprocessor_config.json": _QWEN_3
            | {
                "size": {"longest_edge": 25165824, "shortest_edge": 4096},
                "video_processor_type": "Qwen3VLVideoProcessor",
            },
        },
    ),
}
