"""Reference words for an aspect, asked from a language model and read strictly."""

import contextlib
import re
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import cast

import httpx

from covervlm.server.engines.base import Engine, GenerationChunk, GenerationRequest, Message, SamplingParams, TextPart

MOST_WORDS = 64
_ANSWER_TOKENS = 160
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s*")
_WORD = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+){0,2}")


class UnusableWords(ValueError):
    """The answer is no list of words."""


def question(aspect: str, subject: str) -> str:
    return (
        f"List the different values that the {aspect} of {subject or 'an object'} can have. "
        "Answer with the words alone, separated by commas, nothing else."
    )


def parse_words(answer: str) -> list[str]:
    """Words of a comma-separated, numbered or bulleted list, in lower case, without repetitions.

    Raises UnusableWords unless every item is a term of one to three words and there are 2 to 64 of them.
    """
    lines = [_NUMBERING.sub("", line) for line in answer.strip().strip(".").splitlines()]
    items = [item.strip().strip(".").strip() for line in lines for item in re.split("[,;]", line)]
    words = list(dict.fromkeys(" ".join(item.split()).casefold() for item in items if item))
    for word in words:
        if not _WORD.fullmatch(word):
            raise UnusableWords(f"{word[:40]!r} is not a word")
    if not 2 <= len(words) <= MOST_WORDS:
        raise UnusableWords(f"it holds {len(words)} words, not 2 to {MOST_WORDS}")
    return words


WordSource = Callable[[str, str, str], Awaitable[list[str]]]
"""(aspect, subject, request id) -> reference words; raises UnusableWords or EngineError."""


def words_from_engine(engine: Engine) -> WordSource:
    """Ask the served model, without images."""

    async def ask(aspect: str, subject: str, request_id: str) -> list[str]:
        message = Message("user", (TextPart(question(aspect, subject)),))
        sampling = SamplingParams(max_tokens=_ANSWER_TOKENS, temperature=0)
        chunks = engine.generate(GenerationRequest(request_id, (message,), sampling))
        async with contextlib.aclosing(cast(AsyncGenerator[GenerationChunk, None], chunks)):
            return parse_words("".join([chunk.text async for chunk in chunks]))

    return ask


def words_from_endpoint(
    url: str, model: str, api_key: str | None, transport: httpx.AsyncBaseTransport | None = None
) -> WordSource:
    """Ask another OpenAI-compatible server."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    async def ask(aspect: str, subject: str, request_id: str) -> list[str]:
        messages = [{"role": "user", "content": question(aspect, subject)}]
        body = {"model": model, "messages": messages, "max_tokens": _ANSWER_TOKENS, "temperature": 0}
        try:
            async with httpx.AsyncClient(base_url=url.rstrip("/"), headers=headers, transport=transport) as client:
                response = await client.post("/chat/completions", json=body, timeout=60)
            response.raise_for_status()
            answer = str(response.json()["choices"][0]["message"]["content"])
        except (httpx.HTTPError, ValueError, KeyError, IndexError, TypeError):
            raise UnusableWords("the endpoint did not answer") from None
        return parse_words(answer)

    return ask
