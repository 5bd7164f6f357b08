"""What a text completion answers with: OpenAI's object, which is its event as well, with vLLM's fields."""

from typing import Literal

from pydantic import BaseModel

from covervlm.server.api.wire.chat_response import PromptLogprob, Usage
from covervlm.server.core.generation import FinishReason


class CompletionLogprobs(BaseModel):
    """One entry per token in each list. Nothing comes before the first token of an echoed prompt: its are null.

    `text_offset` is where in the text the token begins.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """`finish_reason` is null in events before the last one of a choice."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | None = None


class Completion(BaseModel):
    """The answers to prompt i are choices i * n to i * n + n - 1. Fields that are not set are not sent."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
