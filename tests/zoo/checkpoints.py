"""Checkpoints shaped like those that people serve: published settings and templates, real tokenizers, tiny weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tests.zoo.models import PINPOINTS, llava_1_5, llava_next_llama_3, llava_next_mistral, qwen2_5_vl
from tests.zoo.templates import LLAMA_3, MISTRAL, QWEN, VICUNA
from tests.zoo.vocabularies import vocabulary

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


@dataclass(frozen=True)
class Exhibit:
    """One checkpoint of the zoo.

    model: builds the tiny model from the tokenizer's ids and the language model's hidden units.
    tokenizer: tokenizer_config.json. generation: generation_config.json, special tokens by their names.
    files: the other JSON files of the repository, by name.
    """

    vocabulary: str
    model: Callable[[Tokenizer, int], PreTrainedModel]
    template: str
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]

    def save(self, folder: Path, *, hidden_size: int = 64) -> None:
        """hidden_size: of the language model, with four heads."""
        tokenizer = vocabulary(self.vocabulary)
        torch.manual_seed(0)
        model = self.model(tokenizer, hidden_size)
        for name, weight in model.named_parameters():
            # Wide enough for an image to change the answer.
            if "projector" in name and name.endswith("weight"):
                torch.nn.init.normal_(weight, std=0.3)
        model.generation_config.update(**{key: _ids(tokenizer, value) for key, value in self.generation.items()})
        model.save_pretrained(folder)
        tokenizer.save(str(folder / "tokenizer.json"))
        files = {"tokenizer_config.json": self._tokenizer_config(tokenizer)} | dict(self.files)
        files["chat_template.json"] = {"chat_template": self.template}
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))

    def _tokenizer_config(self, tokenizer: Tokenizer) -> dict[str, Any]:
        added = {
            str(place): {
                "content": token.content,
                "lstrip": token.lstrip,
                "normalized": token.normalized,
                "rstrip": token.rstrip,
                "single_word": token.single_word,
                "special": token.special,
            }
            for place, token in tokenizer.get_added_tokens_decoder().items()
        }
        return {"added_tokens_decoder": added, "clean_up_tokenization_spaces": False} | dict(self.tokenizer)


def _ids(tokenizer: Tokenizer, value: Any) -> Any:
    if isinstance(value, list):
        return [_ids(tokenizer, name) for name in value]
    return tokenizer.token_to_id(value) if isinstance(value, str) else value


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
        vocabulary="qwen_small",
        model=qwen2_5_vl,
        template=QWEN,
        tokenizer={
            "add_bos_token": False,
            "add_prefix_space": False,
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "unk_token": None,
            "errors": "replace",
            "model_max_length": 131072,
            "split_special_tokens": False,
            "tokenizer_class": "Qwen2Tokenizer",
        },
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
}
