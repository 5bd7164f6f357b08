"""OpenAI's count of tokens."""

from collections.abc import Iterable

from covervlm.server.api.wire.chat_response import PromptTokensDetails, Usage
from covervlm.server.core.generation import PromptReport


def usage(prompts: Iterable[PromptReport], completion_tokens: int) -> Usage:
    """The usage of all prompts of one request together."""
    prompt_tokens = image_tokens = cached_tokens = 0
    for prompt in prompts:
        prompt_tokens += prompt.prompt_tokens
        cached_tokens += prompt.cached_tokens
        image_tokens += sum(image.kept for image in prompt.images)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(
            cached_tokens=cached_tokens, image_tokens=image_tokens, text_tokens=prompt_tokens - image_tokens
        ),
    )
