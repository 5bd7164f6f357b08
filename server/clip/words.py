"""Reference words for an aspect, asked from a language model and read strictly."""

import contextlib
import re
from collections.abc import AsyncGenerator
from typing import cast

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


async def ask_engine(engine: Engine, aspect: str, subject: str, request_id: str) -> str:
    """The served model's answer to `question`. Raises EngineError."""
    request = GenerationRequest(
        request_id,
        (Message("user", (TextPart(question(aspect, subject)),)),),
        SamplingParams(max_tokens=_ANSWER_TOKENS, temperature=0),
    )
    chunks = cast(AsyncGenerator[GenerationChunk, None], engine.generate(request))
    async with contextlib.aclosing(chunks):
        return "".join([chunk.text async for chunk in chunks])
