"""Saves the model of the peers' suites into a folder: a tiny LLaVA-OneVision of random weights whose answers end."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))  # its files are those of the tests' zoo

import torch
from torch.nn import Parameter
from transformers import AutoModelForImageTextToText, AutoTokenizer

from tests.zoo.checkpoints import ZOO

UNIT = 8.0
"""What the first hidden unit is for every token and in every layer: a bias for the logits."""

END = 8.8
"""The logit of the answer's end, the same everywhere; the largest of all others is about as large."""

CLOSING = {'"': 8.0, '"}': 8.0, '"]': 7.0, "}": 7.0, "]": 7.0, "}}": 7.0}
"""What closes a string, an object or a list, and by how much its logit is raised."""

NEVER = -100.0
"""For the rows that no token has, which a trained model does not choose either."""


@torch.no_grad()
def save(folder: Path) -> None:
    ZOO["llava-onevision"].save(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    model.config.tie_word_embeddings = model.config.text_config.tie_word_embeddings = False
    language, words = model.model.language_model, model.get_input_embeddings().weight
    model.lm_head.weight = Parameter(words.clone())
    words[:, 0] = UNIT
    for layer in language.layers:
        layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        layer.input_layernorm.weight[0] = layer.post_attention_layernorm.weight[0] = 0
    hidden = language(input_ids=torch.randint(words.shape[0], (1, 512))).last_hidden_state
    tokenizer, raised = AutoTokenizer.from_pretrained(folder), CLOSING | {"<|im_end|>": END}
    model.lm_head.weight[:, 0] = 0
    model.lm_head.weight[tokenizer.eos_token_id] = 0
    model.lm_head.weight[len(tokenizer) :, 0] = NEVER
    tokens = tokenizer.convert_tokens_to_ids(list(raised))
    model.lm_head.weight[tokens, 0] = torch.tensor(list(raised.values())) / hidden[..., 0].mean()
    model.save_pretrained(folder)


if __name__ == "__main__":
    save(Path(sys.argv[1]))
