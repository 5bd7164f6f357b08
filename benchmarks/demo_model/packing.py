"""Several independent questions about one image in one forward pass: the image is read once, each question alone."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

TokenisedQuestion = tuple[list[int], list[int]]
"""Token ids after the image: of the question with its frame, and of the answer with the end token."""


def tokenise(tokenizer: PreTrainedTokenizerFast, question: str, answer: str) -> TokenisedQuestion:
    asked = tokenizer(f"\n{question} ASSISTANT:", add_special_tokens=False).input_ids
    answered = tokenizer(f" {answer}", add_special_tokens=False).input_ids
    return asked, [*answered, tokenizer.eos_token_id]


@dataclass(frozen=True, eq=False)
class PackedQuestions:
    """The text after each of B images; all (B, T) int64 but prefix.

    ids: tokens, padded. targets: the token to predict at each place, -100 where none is. owner: which question a
    token belongs to, -1 for padding. offsets: tokens since the start of that question. prefix: what precedes the image.
    """

    ids: Tensor
    targets: Tensor
    owner: Tensor
    offsets: Tensor
    prefix: Tensor

    @classmethod
    def of(cls, rows: list[list[TokenisedQuestion]], tokenizer: PreTrainedTokenizerFast) -> "PackedQuestions":
        shape = len(rows), max(sum(len(asked) + len(answer) for asked, answer in row) for row in rows)
        ids = torch.full(shape, tokenizer.pad_token_id)
        targets, owner = torch.full(shape, -100), torch.full(shape, -1)
        offsets = torch.zeros(shape, dtype=torch.long)
        for b, row in enumerate(rows):
            start = 0
            for k, (asked, answer) in enumerate(row):
                end = start + len(asked) + len(answer)
                ids[b, start:end] = torch.tensor(asked + answer)
                targets[b, start + len(asked) - 1 : end - 1] = torch.tensor(answer)
                owner[b, start:end] = k
                offsets[b, start:end] = torch.arange(end - start)
                start = end
        return cls(ids, targets, owner, offsets, torch.tensor(tokenizer("USER: ").input_ids))


def forward(model: LlavaForConditionalGeneration, features: Tensor, packed: PackedQuestions) -> tuple[Tensor, Tensor]:
    """Logits of the text part (B, T, vocabulary), and the projected image tokens (B, n, d).

    features: (B, n, d_v). A question sees the image and itself only, and its positions follow right on the image's,
    so the result equals asking each question alone.
    """
    language_model = model.model.language_model
    image = model.model.multi_modal_projector(features)
    batch, length = packed.ids.shape
    start = len(packed.prefix) + image.shape[1]
    prefix = language_model.embed_tokens(packed.prefix).expand(batch, -1, -1)
    embeddings = torch.cat([prefix, image, language_model.embed_tokens(packed.ids)], 1)
    positions = torch.cat([torch.arange(start).expand(batch, -1), packed.offsets + start], 1)
    owner = torch.cat([torch.full((batch, start), -2), packed.owner], 1)
    same_question = owner[:, :, None] == owner[:, None, :]
    to_image = (owner == -2)[:, None, :]
    causal = torch.ones(start + length, start + length, dtype=torch.bool).tril()
    mask = ((same_question | to_image) & causal)[:, None]
    states = language_model(
        inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False
    ).last_hidden_state
    return model.lm_head(states[:, start:]), image
