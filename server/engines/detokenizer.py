"""Text of a growing answer: each token's own bytes, whole characters only, and nothing past a stop string."""

import codecs
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from transformers.convert_slow_tokenizer import bytes_to_unicode

from covervlm.server.core.generation import TokenLogprob

_UNKNOWN = "\ufffd"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BYTE_OF_CHARACTER = {character: byte for byte, character in bytes_to_unicode().items()}


class PromptScores(NamedTuple):
    """Of every prompt token but the first: its log probability and rank, and the likeliest tokens with theirs."""

    logprobs: Sequence[float]
    ranks: Sequence[int]
    top: Sequence[Sequence[int]]
    top_logprobs: Sequence[Sequence[float]]


class Vocabulary:
    """What each token adds to a text that has begun: its bytes, which need not be whole characters.

    A tokenizer's decoder may drop the space before the very first word; an answer follows its prompt, so that space
    is part of it, as in vLLM. The answer's bytes are its tokens' bytes one after the other, whatever the decoder makes
    of a run of bytes that is not UTF-8.
    """

    def __init__(self, tokenizer: Any) -> None:
        """tokenizer: transformers' or, without a fast backend, whatever decodes as one does."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._decode: Callable[..., str] = (backend or tokenizer).decode
        self._name: Callable[[int], str | None] = (
            backend.id_to_token if backend else lambda token: tokenizer.convert_ids_to_tokens([token])[0]
        )
        ids = backend.encode("a", add_special_tokens=False).ids if backend else tokenizer.encode("a")
        self._before: list[int] = list(ids)
        self._before_text = self._text(self._before)
        self._known: dict[int, bytes] = {}

    def bytes_of(self, token: int) -> bytes:
        """No bytes for special tokens and for ids that the tokenizer does not have."""
        if (known := self._known.get(token)) is None:
            known = self._known[token] = self._find(token)
        return known

    def name_of(self, token: int) -> str:
        """The tokenizer's name of a token, empty for ids that it does not have."""
        return self._name(token) or ""

    def entry(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = (), *, rank: int = 0) -> TokenLogprob:
        """A token as API clients see it: a special one, which makes no text, by its name."""
        text = self.bytes_of(token)
        data = text or self.name_of(token).encode()
        return TokenLogprob(data.decode(errors="replace"), tuple(data), logprob, top, token, rank, special=not text)

    def prompt_entries(self, ids: Sequence[int], scores: PromptScores) -> tuple[TokenLogprob, ...]:
        """A prompt's tokens with their log probabilities; nothing comes before the first, whose own is NaN."""
        entries = [self.entry(ids[0], math.nan)]
        for token, logprob, rank, others, values in zip(ids[1:], *scores, strict=True):
            top = tuple(
                self.entry(other, value, rank=place)
                for place, (other, value) in enumerate(zip(others, values, strict=True), start=1)
            )
            entries.append(self.entry(token, logprob, top, rank=rank))
        return tuple(entries)

    def _find(self, token: int) -> bytes:
        text = self._text([*self._before, token])
        if text.startswith(self._before_text) and _UNKNOWN not in text:
            return text[len(self._before_text) :].encode()
        name = self.name_of(token)
        if byte := _BYTE.fullmatch(name):
            return bytes([int(byte[1], 16)])
        if all(character in _BYTE_OF_CHARACTER for character in name):
            return bytes(_BYTE_OF_CHARACTER[character] for character in name)
        return self._text([token]).encode()

    def _text(self, tokens: Sequence[int]) -> str:
        return self._decode(tokens, skip_special_tokens=True)


_vocabularies: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """The tokenizer's vocabulary, made once for each tokenizer."""
    if (known := _vocabularies.get(tokenizer)) is None:
        known = _vocabularies[tokenizer] = Vocabulary(tokenizer)
    return known


class Detokenizer:
    """Turns one sequence's tokens into text pieces.

    Bytes of an unfinished character wait for the rest of it; bytes that form none become U+FFFD. Text that might be
    the beginning of a stop string waits until that is decided; once a stop string appears, the text ends before it.
    Log probabilities wait for their tokens' text, and those of a stop string's tokens go with it.

    min_tokens: how many tokens come before the first that may complete a stop string. include_stop: the text ends after
    the stop string. specials: special tokens appear by their names.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: tuple[str, ...] = (),
        *,
        min_tokens: int = 0,
        include_stop: bool = False,
        specials: bool = False,
    ) -> None:
        self._vocabulary = vocabulary_of(tokenizer)
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = stop
        self._unstoppable = min_tokens
        self._include_stop = include_stop
        self._specials = specials
        self._held = ""
        self._settled = 0
        self._read = 0
        self._shown = 0
        self._waiting: list[tuple[int, TokenLogprob]] = []
        self.stopped: str | None = None

    def feed(self, token: int, logprob: TokenLogprob | None = None) -> str:
        """Add a token; returns the text that is now certain, possibly empty. At a stop string, sets `stopped` to it."""
        data = self._vocabulary.bytes_of(token)
        if self._specials and not data:
            data = self._vocabulary.name_of(token).encode()
        piece = self._characters.decode(data[:1])
        if logprob is not None and data:
            # Where the character begins that the token's first byte belongs to.
            unfinished, _ = self._characters.getstate()
            self._waiting.append((self._read + len(piece) - (not unfinished), logprob))
        piece += self._characters.decode(data[1:])
        self._read += len(piece)
        self._held += piece
        if self._unstoppable:
            self._unstoppable -= 1
            self._settled = len(self._held)
        if ends := [(at + len(stop), at, stop) for stop in self._stop if (at := self._find(stop)) >= 0]:
            end, start, self.stopped = min(ends, key=lambda found: found[0])
            return self._release(end if self._include_stop else start)
        return self._release(len(self._held) - self._undecided())

    def flush(self) -> str:
        """What was held back for a stop string that never came; the sequence has ended."""
        return self._release(len(self._held))

    def logprobs(self, *, ended: bool = False) -> tuple[TokenLogprob, ...]:
        """Those of the tokens whose text has been returned, each once.

        ended: also those of a character that stays unfinished; never those that a stop string took.
        """
        if ended and not self.stopped:
            count = len(self._waiting)
        else:
            count = sum(start < self._shown for start, _ in self._waiting)
        entries = tuple(entry for _, entry in self._waiting[:count])
        del self._waiting[:count]
        return entries

    def _release(self, count: int) -> str:
        text, self._held = self._held[:count], self._held[count:]
        self._settled = max(0, self._settled - count)
        self._shown += count
        return text

    def _find(self, stop: str) -> int:
        """Where a stop string begins in the held text, -1 if nowhere, or if it ends among the first `min_tokens`."""
        return self._held.find(stop, max(0, self._settled - len(stop) + 1))

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = min(len(self._held), max(map(len, self._stop), default=1) - 1)
        for length in range(longest, 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stop):
                return length
        return 0
