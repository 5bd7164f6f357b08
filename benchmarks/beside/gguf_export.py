"""A LLaVA checkpoint as llama.cpp reads it, in float32: the language model's file and the tower's.

Runs in the peers' environment: python gguf_export.py CHECKPOINT FOLDER

llama.cpp's own converter takes LLaVA in its authors' old format alone, so this writes the same names and fields from
the checkpoint of transformers.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, TokenType
from safetensors.torch import load_file
from torch import Tensor

LLAMA = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
CLIP = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}
TEMPLATE = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + ' ' }}{% endfor %}assistant:"
"""The checkpoint's template in lower case, as its tokenizer makes everything and llama.cpp's does not."""


def write(file: GGUFWriter, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        file.add_tensor(name, tensor.float().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()


def layer_names(weights: Mapping[str, Tensor], prefix: str, names: Mapping[str, str], to: str) -> dict[str, Tensor]:
    """The layers' tensors, renamed."""
    found = {}
    for name, tensor in weights.items():
        if name.startswith(prefix):
            number, _, rest = name.removeprefix(prefix).partition(".")
            part, _, kind = rest.rpartition(".")
            found[f"{to}.{number}.{names[part]}.{kind}"] = tensor
    return found


def interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of queries and keys in llama.cpp's order: the two halves that are rotated together stand side by side."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape).contiguous()


def language_model(source: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    file = GGUFWriter(path, "llama")
    file.add_context_length(config["max_position_embeddings"])
    file.add_embedding_length(config["hidden_size"])
    file.add_block_count(config["num_hidden_layers"])
    file.add_feed_forward_length(config["intermediate_size"])
    file.add_head_count(config["num_attention_heads"])
    file.add_head_count_kv(config["num_key_value_heads"])
    file.add_rope_dimension_count(config["head_dim"])
    file.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    file.add_layer_norm_rms_eps(config["rms_norm_eps"])
    file.add_vocab_size(config["vocab_size"])
    file.add_file_type(0)
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    special = {token["id"] for token in tokenizer["added_tokens"]}
    vocabulary = sorted(tokenizer["model"]["vocab"].items(), key=lambda item: item[1])
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre("gpt-2")
    file.add_token_list([token for token, _ in vocabulary])
    file.add_token_types([TokenType.CONTROL if number in special else TokenType.NORMAL for _, number in vocabulary])
    file.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    file.add_bos_token_id(config["bos_token_id"])
    file.add_eos_token_id(config["eos_token_id"])
    file.add_add_bos_token(True)
    file.add_chat_template(TEMPLATE)
    layers = layer_names(weights, "language_model.model.layers.", LLAMA, "blk")
    for name in layers:
        if "attn_q." in name or "attn_k." in name:
            heads = config["num_attention_heads" if "attn_q" in name else "num_key_value_heads"]
            layers[name] = interleaved(layers[name], heads)
    ends = {
        "token_embd.weight": weights["language_model.model.embed_tokens.weight"],
        "output_norm.weight": weights["language_model.model.norm.weight"],
        "output.weight": weights["language_model.lm_head.weight"],
    }
    write(file, ends | layers)


def tower(source: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any], path: Path) -> None:
    pictures = json.loads((source / "preprocessor_config.json").read_text())
    file = GGUFWriter(path, "clip")
    file.add_file_type(0)
    file.add_bool("clip.has_vision_encoder", True)
    file.add_bool("clip.has_llava_projector", True)
    file.add_string("clip.projector_type", "mlp")
    file.add_bool("clip.use_gelu", False)  # CLIP's own, the quick one
    fields = {
        "image_size": config["image_size"],
        "patch_size": config["patch_size"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "projection_dim": config["projection_dim"],
        "attention.head_count": config["num_attention_heads"],
        "block_count": config["num_hidden_layers"],  # llama.cpp leaves the last one out by itself
    }
    for name, value in fields.items():
        file.add_uint32(f"clip.vision.{name}", value)
    file.add_float32("clip.vision.attention.layer_norm_epsilon", config["layer_norm_eps"])
    file.add_array("clip.vision.image_mean", pictures["image_mean"])
    file.add_array("clip.vision.image_std", pictures["image_std"])
    clip = "vision_tower"
    named = {
        "v.class_embd": weights[f"{clip}.embeddings.class_embedding"],
        "v.patch_embd.weight": weights[f"{clip}.embeddings.patch_embedding.weight"],
        "v.position_embd.weight": weights[f"{clip}.embeddings.position_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        named[f"v.pre_ln.{kind}"] = weights[f"{clip}.pre_layrnorm.{kind}"]
        named[f"v.post_ln.{kind}"] = weights[f"{clip}.post_layernorm.{kind}"]
        named[f"mm.0.{kind}"] = weights[f"multi_modal_projector.linear_1.{kind}"]
        named[f"mm.2.{kind}"] = weights[f"multi_modal_projector.linear_2.{kind}"]
    write(file, named | layer_names(weights, f"{clip}.encoder.layers.", CLIP, "v.blk"))


def main() -> None:
    source, target = map(Path, sys.argv[1:])
    target.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text())
    # Older releases of transformers name a level more.
    loaded = load_file(source / "model.safetensors")
    weights = {name.replace("vision_tower.vision_model", "vision_tower"): loaded[name] for name in loaded}
    tower(source, weights, config["vision_config"], target / "tower.gguf")
    language_model(source, weights, config["text_config"], target / "language.gguf")


if __name__ == "__main__":
    main()
