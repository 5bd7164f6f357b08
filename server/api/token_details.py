"""Details of single tokens in answers: names, log probabilities and text offsets, in OpenAI's and vLLM's forms."""

import codecs
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from covervlm.server.api.wire.chat_response import ContentLogprob, PromptLogprob, TopLogprob
from covervlm.server.core.generation import TokenLogprob

UNLIKELY = -9999.0
"""OpenAI's stand-in for a log probability that is not finite, which JSON cannot spell."""


def finite(logprob: float) -> float:
    return logprob if logprob > UNLIKELY else UNLIKELY


def token_name(token: TokenLogprob, *, by_id: bool) -> str:
    """The token's text, or vLLM's name for what no text can tell apart."""
    return f"token_id:{token.id}" if by_id else token.token


def content_logprobs(tokens: Iterable[TokenLogprob], *, by_id: bool = False) -> list[ContentLogprob]:
    """Log probabilities in OpenAI's form."""

    def entry(token: TokenLogprob) -> dict[str, Any]:
        name = token_name(token, by_id=by_id)
        return {"token": name, "bytes": list(token.bytes), "logprob": finite(token.logprob)}

    return [
        ContentLogprob(**entry(token), top_logprobs=[TopLogprob(**entry(top)) for top in token.top]) for token in tokens
    ]


def prompt_logprobs(tokens: Sequence[TokenLogprob], top: int) -> list[dict[int, PromptLogprob] | None]:
    """Log probabilities in vLLM's form: by token ids, the prompt's own token and the `top` likeliest."""

    def entry(token: TokenLogprob) -> PromptLogprob:
        return PromptLogprob(logprob=finite(token.logprob), rank=token.rank, decoded_token=token.token)

    return [
        None if math.isnan(own.logprob) else {token.id: entry(token) for token in (own, *own.top[:top])}
        for own in tokens
    ]


def prompt_offsets(text: str, tokens: Iterable[TokenLogprob]) -> Iterator[int]:
    """Where each of a prompt's tokens begins in its text, which may lack something that its tokens spell.

    A tokenizer may put a BOS token and a space before a text.
    """
    at, characters = 0, codecs.getincrementaldecoder("utf-8")("replace")
    for token in tokens:
        yield at
        piece = characters.decode(bytes(token.bytes))
        if not text.startswith(piece, at):
            piece = "" if token.special else piece.removeprefix(" ") if at == 0 else piece
        at = min(at + len(piece), len(text))


class TextOffsets:
    """Where each token of a growing answer begins in its text; special tokens only count where they are shown."""

    def __init__(self, start: int, *, specials: bool) -> None:
        self._at = start
        self._specials = specials
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")

    def of(self, token: TokenLogprob) -> int:
        """The next token's offset; called for the tokens one after the other."""
        at = self._at
        if self._specials or not token.special:
            self._at += len(self._characters.decode(bytes(token.bytes)))
        return at
