"""Every field of every architecture's configuration is either served as transformers serves it, or refused at start."""

import dataclasses
import functools
import json
import shutil
from operator import getitem

import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    InternVLConfig,
    LlavaConfig,
    LlavaNextConfig,
    LlavaOnevisionConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from covervlm.server.core.generation import ImagePart, Message
from covervlm.server.models.checkpoint import Checkpoint, load_adapter
from covervlm.server.models.registry import architecture_of
from tests.server.models.tiny_internvl import save_tiny_internvl
from tests.server.models.tiny_llava import save_tiny_llava, save_tiny_llava_next
from tests.server.models.tiny_onevision import save_tiny_onevision
from tests.server.models.tiny_qwen import save_tiny_qwen
from tests.server.models.tiny_qwen3 import save_tiny_qwen3

SAME = None
"""Served: the language model reads what transformers' own model reads."""
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 32, "image_size": 32, "patch_size": 8}
DINO = {"model_type": "dinov2", "hidden_size": 32, "image_size": 32, "patch_size": 8}

# Field: changes to a configuration, by dotted name, and what comes of each.
OF_ALL = {
    "transformers_version": [({"transformers_version": "4.44.0"}, SAME)],
    "architectures": [({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM is not supported")],
    "output_hidden_states": [({"output_hidden_states": True}, SAME)],
    "return_dict": [({"return_dict": False}, "return_dict is false")],
    "dtype": [({"dtype": "bfloat16"}, SAME)],  # of the file; the server computes in what suits the device
    "chunk_size_feed_forward": [({"chunk_size_feed_forward": 1}, SAME)],
    "is_encoder_decoder": [({"is_encoder_decoder": True}, SAME)],  # nothing reads it of these classes
    "id2label": [({"id2label": {"0": "cat"}}, SAME)],
    "label2id": [({"label2id": {"cat": 0}}, SAME)],
    "problem_type": [({"problem_type": "regression"}, SAME)],
    "tie_word_embeddings": [({"tie_word_embeddings": True}, SAME)],
    "text_config": [
        ({"text_config.attention_bias": True}, SAME),
        ({"text_config.hidden_act": "gelu"}, SAME),
        ({"text_config.num_key_value_heads": 1}, SAME),
        ({"text_config.layer_types": ["full_attention", "linear_attention"]}, "layer_types has linear_attention"),
        ({"text_config.layer_types": ["chunked_attention"] * 2}, "layer_types has chunked_attention"),
        ({"text_config.rope_parameters.rope_type": "dynamic", "text_config.rope_parameters.factor": 2.0}, SAME),
        ({"text_config.rope_parameters.rope_type": "proportional"}, "proportional"),
    ],
}
OF_LLAVA = OF_ALL | {
    "text_config": [
        *OF_ALL["text_config"],
        ({"text_config.rope_parameters.rope_type": "linear", "text_config.rope_parameters.factor": 2.0}, SAME),
        ({"text_config.model_type": "mistral", "text_config.sliding_window": 6}, SAME),
        ({"text_config.model_type": "qwen2"}, SAME),
        ({"text_config.tie_word_embeddings": True}, SAME),
    ],
    "vision_config": [
        ({"vision_config": SIGLIP, "vision_feature_select_strategy": "full"}, SAME),
        ({"vision_config": SIGLIP}, "'default', which with a siglip_vision_model drops the image's first patch"),
        ({"vision_config": PIXTRAL, "vision_feature_select_strategy": "full"}, "the vision tower is a pixtral"),
        ({"vision_config": PIXTRAL}, "the vision tower is a pixtral"),
        ({"vision_config": DINO}, "the vision tower is a dinov2"),
        ({"vision_config.num_hidden_layers": 1, "vision_feature_layer": -1}, "the tower has 1 layers"),
        ({"vision_config.num_channels": 4}, "num_channels is 4"),
        ({"vision_config.image_size": 40}, "do not fit together|do not fill"),
        ({"vision_config.image_size": [32, 40]}, "only square images"),
        ({"vision_config.patch_size": 16}, SAME),
        ({"vision_config.hidden_act": "gelu"}, SAME),
    ],
    "image_token_index": [
        ({"image_token_index": 9}, "The prompt has 0 times .* for 1 images"),
        ({"image_token_index": 100_000}, "100000"),
    ],
    "image_seq_length": [({"image_seq_length": 99}, SAME)],  # nothing reads it
    "projector_hidden_act": [({"projector_hidden_act": "relu"}, SAME), ({"projector_hidden_act": "cube"}, "cube")],
    "vision_feature_select_strategy": [
        ({"vision_feature_select_strategy": "full"}, "counts its CLS token as part of the image"),
        ({"vision_feature_select_strategy": "first"}, "first"),
    ],
    "vision_feature_layer": [
        ({"vision_feature_layer": -1}, SAME),
        ({"vision_feature_layer": 0}, "vision_feature_layer is 0"),
        ({"vision_feature_layer": 3}, SAME),
        ({"vision_feature_layer": [-2, -1, 1]}, SAME),
        ({"vision_feature_layer": 4}, "vision_feature_layer is 4, and the tower has 3 layers"),
        ({"vision_feature_layer": [-2, -9]}, "the tower has 3 layers"),
        ({"vision_feature_layer": []}, "the tower has 3 layers"),
    ],
    "multimodal_projector_bias": [({"multimodal_projector_bias": False}, SAME)],
}
TABLE = {
    "llava": OF_LLAVA,
    "llava_next": OF_LLAVA
    | {
        "image_grid_pinpoints": [
            ({"image_grid_pinpoints": [[32, 64], [64, 32]]}, "are not the same"),
            ({"image_grid_pinpoints": [[32, 50]]}, "which tiles of 32 pixels do not fill"),
        ]
    },
    "qwen2_5_vl": OF_ALL
    | {
        "text_config": [
            *OF_ALL["text_config"][1:],  # its attention has biases as it is
            ({"text_config.use_sliding_window": True, "text_config.sliding_window": 8}, SAME),
            ({"text_config.rope_parameters.mrope_section": [2, 2, 2]}, "should split 8 into three"),
            ({"text_config.rope_parameters.mrope_section": None}, "should split 8 into three"),
        ],
        "vision_config": [
            ({"vision_config.in_channels": 1}, "in_channels is 1"),
            ({"vision_config.spatial_merge_size": 1}, SAME),
            ({"vision_config.patch_size": 28}, "do not fit together"),
            ({"vision_config.temporal_patch_size": 1}, "do not fit together"),
            ({"vision_config.tokens_per_second": 4}, SAME),
            ({"vision_config.window_size": 112}, SAME),
            ({"vision_config.fullatt_block_indexes": [0, 2]}, SAME),
            ({"vision_config.out_hidden_size": 32}, "do not fit together"),
        ],
        "image_token_id": [
            ({"image_token_id": 9}, "The prompt has 0 times .* for 1 images"),
            ({"image_token_id": 100_000}, "100000"),
        ],
        "video_token_id": [({"video_token_id": 100_000}, "100000")],
        "vision_start_token_id": [({"vision_start_token_id": 3}, SAME)],
        "vision_end_token_id": [({"vision_end_token_id": 3}, SAME)],
    },
    "llava_onevision": {
        **{name: changes for name, changes in OF_LLAVA.items() if name != "image_seq_length"},
        "text_config": [({"text_config.model_type": "llama"}, SAME)],
        "vision_config": [
            ({"vision_config.model_type": "clip_vision_model"}, "counts its CLS token as part of the image"),
            (
                {"vision_config.model_type": "clip_vision_model", "vision_feature_select_strategy": "default"},
                SAME,
            ),
            ({"vision_config.num_channels": 4}, "num_channels is 4"),
            ({"vision_config.image_size": 40}, "do not fit together|do not fill"),
            ({"vision_config.patch_size": 12}, SAME),
            ({"vision_config.vision_use_head": True}, SAME),
        ],
        "vision_feature_select_strategy": [
            ({"vision_feature_select_strategy": "default"}, "drops the image's first patch"),
        ],
        "video_token_index": [({"video_token_index": 100_000}, "100000")],
        "vision_aspect_ratio": [
            ({"vision_aspect_ratio": "anyres_max_4"}, "only 'anyres_max_9'"),
            ({"vision_aspect_ratio": "anyres"}, "only 'anyres_max_9'"),
        ],
        "image_grid_pinpoints": [
            ({"image_grid_pinpoints": [[24, 48], [48, 24]]}, "are not the same"),
            ({"image_grid_pinpoints": [[24, 50]]}, "which tiles of 24 pixels do not fill"),
        ],
    },
    "internvl": OF_ALL
    | {
        "text_config": [({"text_config.model_type": "llama"}, SAME)],
        "vision_config": [
            ({"vision_config.use_qk_norm": True}, SAME),
            ({"vision_config.norm_type": "rms_norm"}, SAME),
            ({"vision_config.use_absolute_position_embeddings": False}, SAME),
            ({"vision_config.use_mean_pooling": False}, SAME),
            ({"vision_config.num_channels": 4}, "num_channels is 4"),
            ({"vision_config.image_size": [32, 48]}, "only square images"),
            ({"vision_config.patch_size": [8, 16]}, "only square images"),
            ({"vision_config.patch_size": [4, 4]}, SAME),
            (
                {"vision_config": {"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8}},
                "the vision tower is a siglip_vision_model",
            ),
        ],
        "image_token_id": [
            ({"image_token_id": 9}, "The prompt has 0 times .* for 1 images"),
            ({"image_token_id": 100_000}, "100000"),
        ],
        "image_seq_length": [({"image_seq_length": 99}, SAME)],  # the processor's own is what is read
        "downsample_ratio": [
            ({"downsample_ratio": 0.25}, SAME),
            ({"downsample_ratio": 1.0}, SAME),
            ({"downsample_ratio": 0.4}, "does not divide 4 rows"),
            ({"downsample_ratio": 2.0}, "does not divide 4 rows"),
        ],
        "projector_hidden_act": [({"projector_hidden_act": "relu"}, SAME), ({"projector_hidden_act": "cube"}, "cube")],
        "vision_feature_layer": [
            ({"vision_feature_layer": -2}, "only -1, the last"),
            ({"vision_feature_layer": [-1]}, "only -1, the last"),
        ],
        "vision_feature_select_strategy": [
            ({"vision_feature_select_strategy": "full"}, "counts the CLS token as part of the image"),
        ],
    },
}
TABLE["qwen3_vl"] = OF_ALL | {
    "text_config": [
        ({"text_config.attention_bias": True}, SAME),
        ({"text_config.rope_parameters.mrope_section": [4, 2, 1]}, "should split 8 into three"),
        ({"text_config.rope_parameters.mrope_section": None}, "should split 8 into three"),
        ({"text_config.num_hidden_layers": 1}, "2 layers .* has 1"),
    ],
    "vision_config": [
        ({"vision_config.in_channels": 1}, "in_channels is 1"),
        ({"vision_config.spatial_merge_size": 1}, SAME),
        ({"vision_config.patch_size": 14}, "do not fit together"),
        ({"vision_config.temporal_patch_size": 1}, "do not fit together"),
        ({"vision_config.out_hidden_size": 32}, "do not fit together"),
        ({"vision_config.num_position_embeddings": 64}, SAME),
        ({"vision_config.deepstack_visual_indexes": [1]}, SAME),
        ({"vision_config.deepstack_visual_indexes": []}, SAME),
        ({"vision_config.deepstack_visual_indexes": [2, 0]}, "should ascend"),
        ({"vision_config.deepstack_visual_indexes": [0, 7]}, "should ascend"),
    ],
    "image_token_id": TABLE["qwen2_5_vl"]["image_token_id"],
    "video_token_id": TABLE["qwen2_5_vl"]["video_token_id"],
    "vision_start_token_id": [({"vision_start_token_id": 3}, SAME)],
    "vision_end_token_id": [({"vision_end_token_id": 3}, SAME)],
}
CLASSES = {
    "llava": LlavaConfig,
    "llava_next": LlavaNextConfig,
    "llava_onevision": LlavaOnevisionConfig,
    "internvl": InternVLConfig,
    "qwen2_5_vl": Qwen2_5_VLConfig,
    "qwen3_vl": Qwen3VLConfig,
}
SAVE = {
    "llava": save_tiny_llava,
    "llava_next": save_tiny_llava_next,
    "llava_onevision": save_tiny_onevision,
    "internvl": save_tiny_internvl,
    "qwen2_5_vl": save_tiny_qwen,
    "qwen3_vl": save_tiny_qwen3,
}
CASES = [
    pytest.param(kind, change, outcome, id=f"{kind}-{field}-{number}")
    for kind, table in TABLE.items()
    for field, changes in table.items()
    for number, (change, outcome) in enumerate(changes)
]


@pytest.mark.parametrize("kind", CLASSES)
def test_no_field_is_missing_from_the_table(kind):
    assert set(TABLE[kind]) >= {field.name for field in dataclasses.fields(CLASSES[kind])}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The folder of an unchanged tiny checkpoint, by architecture."""

    @functools.cache
    def get(kind):
        folder = tmp_path_factory.mktemp(kind)
        SAVE[kind](folder)
        return folder

    return get


def changed(config, change):
    for name, value in change.items():
        *path, last = name.split(".")
        functools.reduce(getitem, path, config)[last] = value
    return config


@pytest.fixture
def folder(checkpoints, tmp_path):
    """The checkpoint with another configuration, and weights to match it where there can be any."""

    def make(kind, change, *, served):
        copy = shutil.copytree(checkpoints(kind), tmp_path / kind)
        file = copy / "config.json"
        file.write_text(json.dumps(changed(json.loads(file.read_text()), change)))
        try:
            config = AutoConfig.from_pretrained(copy)
            torch.manual_seed(1)
            model = AutoModelForImageTextToText.from_config(config)
        except Exception:
            if served:
                raise
            return copy  # transformers itself refuses it
        model.save_pretrained(copy)
        file.write_text(json.dumps(changed(json.loads(file.read_text()), change)))
        return copy

    return make


@pytest.fixture(scope="module")
def picture():
    generator = torch.Generator().manual_seed(0)
    return Image.fromarray(torch.randint(0, 256, (60, 90, 3), generator=generator, dtype=torch.uint8).numpy())


@pytest.mark.parametrize(("kind", "change", "outcome"), CASES)
@torch.inference_mode()
def test_a_field_is_served_as_by_transformers_or_refused_at_start(kind, change, outcome, folder, picture):
    path = folder(kind, change, served=outcome is SAME)
    if outcome is not SAME:
        with pytest.raises(Exception, match=outcome) as refused:
            load_adapter(Checkpoint(path))
        assert isinstance(refused.value, (ValueError, OSError)), refused.value
        return
    adapter = load_adapter(Checkpoint(path))
    ids = adapter.tokenize((Message("user", (ImagePart(picture, ""), "What is it?")),))
    inputs = adapter.preprocess(picture)
    [image] = adapter.encode([inputs])
    embeddings, positions = adapter.assemble(ids, [image])
    positions = positions[:, None, :-1] if adapter.position_axes > 1 else positions[:, :-1]
    hidden = adapter.language_model(inputs_embeds=embeddings[None], position_ids=positions).last_hidden_state
    torch.testing.assert_close(
        adapter.lm_head(hidden)[0], plain_logits(kind, path, adapter, ids, inputs, picture), atol=1e-4, rtol=1e-4
    )
    kept = [torch.tensor([1, 3])]
    assert len(adapter.assemble(ids, [image], kept)[0]) == len(ids) + 1


def plain_logits(kind, path, adapter, ids, inputs, picture):
    """transformers' own model over the whole prompt, its image tokens counted by its own tower."""
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    [slot] = adapter.chat.slots(ids)
    if kind.startswith("qwen"):
        vision = {"pixel_values": inputs["pixel_values"], "image_grid_thw": inputs["grid"][None]}
    elif kind == "internvl":
        vision = {"pixel_values": inputs["pixel_values"]}
    else:
        vision = {"pixel_values": inputs["pixel_values"][None]}
    if kind in ("llava_next", "llava_onevision"):
        vision["image_sizes"] = torch.tensor([[picture.height, picture.width]])
    features = model.get_image_features(**vision).pooler_output
    total = features.shape[:2].numel() if kind == "internvl" else len(features[0])
    whole = torch.tensor([[*ids[:slot], *[ids[slot]] * total, *ids[slot + 1 :]]])
    if kind.startswith("qwen"):
        vision["mm_token_type_ids"] = (whole == ids[slot]).int()
    return model(input_ids=whole, attention_mask=torch.ones_like(whole), **vision).logits[0]


@pytest.mark.parametrize("kind", ["llava", "llava_next"])
def test_what_is_refused_is_refused_for_both_engines(kind, checkpoints):
    """vLLM's processes know the configuration alone."""
    config = AutoConfig.from_pretrained(checkpoints(kind))
    config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="counts its CLS token"):
        architecture_of(config)
