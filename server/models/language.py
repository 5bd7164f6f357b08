"""The language model's side of an adapter: loading, token ids to embeddings, kept vision tokens in their slots."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText

from covervlm.server.models.base import Kept, Prompt
from covervlm.server.models.registry import Checkpoint


def load_model(checkpoint: Checkpoint) -> Any:
    """The checkpoint's model on its device, in evaluation mode; safetensors only.

    OSError where weights are missing, which transformers would make up.
    """
    load: Any = AutoModelForImageTextToText.from_pretrained
    model, loading = load(
        checkpoint.path,
        dtype=checkpoint.resolved_dtype(),
        use_safetensors=True,
        trust_remote_code=checkpoint.trust_remote_code,
        output_loading_info=True,
    )
    if missing := sorted(loading["missing_keys"]):
        raise OSError(f"{checkpoint.path}: {len(missing)} weights of the model are missing, e.g. {missing[0]}")
    return model.to(checkpoint.resolved_device()).eval()


def eos_ids(model: Any) -> frozenset[int]:
    """Ids that end an answer, from the generation config or else the model's."""
    eos = model.generation_config.eos_token_id
    if eos is None:
        eos = model.config.text_config.eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())


def embed(embeddings: torch.nn.Embedding, ids: Sequence[int]) -> Tensor:
    """Input embeddings (len(ids), d) of token ids."""
    return embeddings(torch.tensor(ids, dtype=torch.long, device=embeddings.weight.device))


def splice(embeddings: torch.nn.Embedding, prompt: Prompt, images: Sequence[Kept]) -> Tensor:
    """Input embeddings (T, d) of a prompt with the kept vision tokens in place of its placeholders."""
    pieces, start = [], 0
    for slot, kept in zip(prompt.image_slots, images, strict=True):
        tokens = kept.image.tokens
        pieces.append(embed(embeddings, prompt.ids[start:slot]))
        pieces.append(tokens if kept.positions is None else tokens[kept.positions])
        start = slot + 1
    return torch.cat([*pieces, embed(embeddings, prompt.ids[start:])])
