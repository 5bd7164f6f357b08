"""A checkpoint of the zoo on disk: the files of its repository, with random weights."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tests.zoo.vocabularies import vocabulary


@dataclass(frozen=True)
class Exhibit:
    """One checkpoint of the zoo.

    model: builds the tiny model from the tokenizer's ids and the language model's hidden units.
    tokenizer: tokenizer_config.json. generation: generation_config.json, special tokens by their names.
    files: the other JSON files of the repository, by name. template_file: where the template is.
    """

    vocabulary: str
    model: Callable[[Tokenizer, int], PreTrainedModel]
    template: str
    tokenizer: Mapping[str, Any]
    generation: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    template_file: str = "chat_template.json"

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
        for name, content in files.items():
            (folder / name).write_text(json.dumps(content))
        alone = self.template_file.endswith(".jinja")
        (folder / self.template_file).write_text(
            self.template if alone else json.dumps({"chat_template": self.template})
        )

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
