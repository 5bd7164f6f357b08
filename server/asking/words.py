"""Reference words for an aspect, asked of a language model and read strictly."""

import re

from covervlm.server.asking.asker import Asker, NoAnswer
from covervlm.server.core.caller import Caller
from covervlm.server.core.generation import GenerationRequest, Message, SamplingParams

MOST_WORDS = 64
_SAMPLING = SamplingParams(max_tokens=160, temperature=0)
_NUMBERING = re.compile(r"^\s*(?:[-*•]|\d{1,2}[.)])\s*")
_WORD = re.compile(r"[^\W\d_]+(?:[ '-][^\W\d_]+){0,2}")


class UnusableWords(ValueError):
    """The answer is not a list of words."""


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


async def reference_words(ask: Asker, aspect: str, subject: str, *, request_id: str, caller: Caller) -> list[str]:
    """Asks for the values of an aspect. Raises UnusableWords or EngineError."""
    message = Message("user", (question(aspect, subject),))
    try:
        answer = await ask(GenerationRequest(request_id, (message,), _SAMPLING, caller=caller))
    except NoAnswer:
        raise UnusableWords("the endpoint did not answer") from None
    return parse_words(answer.answer)
