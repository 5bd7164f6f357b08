"""The body of a text completion: OpenAI's older API, with vLLM's extensions."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, Tag

from covervlm.server.api.wire.chat_request import items
from covervlm.server.api.wire.sampling import MOST_LOGPROBS, SamplingFields, Text, TokenId, Unsupported
from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.generation import SamplingParams, TextPrompt
from covervlm.server.core.wire import one_of

MOST_PROMPTS = 128
MOST_IDS = 2**20
USUAL_TOKENS = 16
"""OpenAI's `max_tokens` where a request does not say."""


def _prompt_tag(prompt: Any) -> str | None:
    if isinstance(prompt, str):
        return "<text>"
    if not isinstance(prompt, list):
        return None
    first = prompt[0] if prompt else ""
    return "<texts>" if isinstance(first, str) else "<lists>" if isinstance(first, list) else "<ids>"


Ids = Annotated[list[TokenId], items(MOST_IDS)]
Prompts = Annotated[
    Annotated[Text, Tag("<text>")]
    | Annotated[list[Text], items(MOST_PROMPTS), Tag("<texts>")]
    | Annotated[Ids, Tag("<ids>")]
    | Annotated[list[Ids], items(MOST_PROMPTS), Tag("<lists>")],
    one_of(_prompt_tag, "a text, a list of token ids, or a list of either"),
]


class CompletionRequest(SamplingFields):
    """`logprobs` is how many of the likeliest tokens to report; `max_tokens` may be 0 where `echo` is true.

    `truncate_prompt_tokens` cuts each prompt to that many tokens, its last ones unless `truncation_side` is "right".
    """

    model: Text = ""
    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MOST_LOGPROBS)] | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=1)] | None = None
    truncation_side: Literal["left", "right"] | None = None
    suffix: Unsupported = None
    prompt_embeds: Unsupported = None

    @property
    def prompts(self) -> list[TextPrompt]:
        """One for each answer, or for each `n` of them."""
        given: Any = self.prompt
        contents = [given] if isinstance(given, str) or isinstance(given[0], int) else given
        whole = TextPrompt(
            "",
            special_tokens=self.add_special_tokens is not False,
            limit=self.truncate_prompt_tokens,
            from_start=self.truncation_side == "right",
        )
        return [replace(whole, content=one if isinstance(one, str) else tuple(one)) for one in contents]

    @property
    def only_echo(self) -> bool:
        """Whether nothing is to be generated. Engines generate at least one token, which is then left out."""
        return self.max_tokens == 0

    def sampling(self, defaults: Mapping[str, Any] = MappingProxyType({})) -> SamplingParams:
        if self.only_echo and not self.echo:
            message = "Invalid 'max_tokens': should be at least 1 where 'echo' is not true."
            raise InvalidRequest(message, param="max_tokens", code="invalid_value")
        if self.echo and self.truncate_prompt_tokens is not None:
            message = "Invalid 'truncate_prompt_tokens': only allowed where 'echo' is not true."
            raise InvalidRequest(message, param="truncate_prompt_tokens", code="invalid_value")
        prompt_logprobs = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return self.sampled(
            defaults,
            max_tokens=USUAL_TOKENS if self.max_tokens is None else max(1, self.max_tokens),
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs,
            prompt_logprobs=max((top for top in prompt_logprobs if top is not None), default=None),
        )
