"""Grammars over the logits, by llguidance: which tokens may come next in an answer that must follow one."""

import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

import numpy as np
import torch
from cachetools import LRUCache
from llguidance import LLExecutor, LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from
from torch import Tensor

from covervlm.server.core.grammar import BLANKS, Grammar
from covervlm.server.engines.detokenizer import Vocabulary

COMPILE_SECONDS = 2.0
KEPT = 256
"""Compiled grammars that are kept, one more for each 4,096 characters; the least recently used goes first.

They take some 150 bytes for each character of a schema.
"""

_LIMITS = LLParserLimits(max_items_in_row=10_000, verbose_errors=False)
_OF_A_PART = re.compile(r"at (?P<line>\d+)\(\d+\): failed to compile JSON schema: (?P<problem>.*?)\n +\d+ \| ", re.S)
_MARK = "\x02"
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_OF_BYTE = np.where(_BITS, 0, -np.inf).astype(np.float32)
"""(256, 8): what a byte of eight tokens' bits adds to their logits. torch's masked_fill takes 15 times as long."""


class TokenBytes:
    """A tokenizer as llguidance reads it: every token's bytes, those that `Detokenizer` gives to the answer's text."""

    bos_token_id = None

    def __init__(self, tokenizer: Any, size: int, eos_ids: Collection[int]) -> None:
        """size: rows of the logits, of which the tokenizer may know fewer."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._encode: Callable[[str], list[int]] = tokenizer.encode
        if backend is not None:  # which several threads may call
            self._encode = lambda text: backend.encode(text, add_special_tokens=False).ids
        vocabulary = Vocabulary(tokenizer)
        self._spelt = [vocabulary.bytes_of(token) for token in range(size)]
        # A grammar may name tokens that make no text, but no text is spelt with them.
        self.special_token_ids = [token for token, data in enumerate(self._spelt) if not data]
        self.tokens = [data or vocabulary.name_of(token).encode() for token, data in enumerate(self._spelt)]
        self.eos_token_id = min(eos_ids, default=None)

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids by which the model would spell a text in the middle of an answer."""
        data = text if isinstance(text, bytes) else text.encode()
        # The mark merges with no other text, and takes the space that some tokenizers put at the beginning of a text.
        ids, read = self._encode(_MARK + data.decode(errors="replace")), b""
        while ids and not read.endswith(_MARK.encode()):
            read += self._spelt[ids[0]]
            ids = ids[1:]
        return ids if b"".join(self._spelt[token] for token in ids) == data else self._longest_first(data)

    def _longest_first(self, data: bytes) -> list[int]:
        """For a text that the tokenizer would change or take for a special token."""
        ids: list[int] = []
        while data:
            length = next((n for n in range(min(len(data), 64), 0, -1) if data[:n] in self._ids), 0)
            if not length:
                break
            ids.append(self._ids[data[:length]])
            data = data[length:]
        return ids

    @cached_property
    def _ids(self) -> Mapping[bytes, int]:
        return {data: token for token, data in enumerate(self._spelt)}


class Grammars:
    """Compiles grammars for one tokenizer, within limits of time and size, and caches them by owner."""

    def __init__(self, tokenizer: Any, size: int, eos_ids: Collection[int], threads: int) -> None:
        """Takes seconds for a large vocabulary. size: as for TokenBytes. threads: grammars compiled at once."""
        self._tokenizer = LLTokenizer(TokenizerWrapper(TokenBytes(tokenizer, size, eos_ids)))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="covervlm-grammar")
        self._kept: LRUCache[tuple[str, Grammar], tuple[LLMatcher, int]] = LRUCache(KEPT, lambda kept: kept[1])
        self._keeping = threading.Lock()

    def compiled(self, grammar: Grammar, owner: str) -> LLMatcher:
        """The grammar at its beginning, to be copied; in any thread but the event loop's. Raises InvalidRequest."""
        with self._keeping:
            if (known := self._kept.get((owner, grammar))) is not None:
                return known[0]
        work = self._pool.submit(self._compile, grammar)
        try:
            matcher = work.result(COMPILE_SECONDS)
        except TimeoutError:
            work.cancel()
            raise grammar.refusal(f"it takes more than {COMPILE_SECONDS:g} seconds to compile") from None
        except ValueError as error:
            raise grammar.refusal(str(error)) from None
        with self._keeping:
            self._kept[owner, grammar] = matcher, 1 + len(grammar.text) // 4096
        return matcher

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _compile(self, grammar: Grammar) -> LLMatcher:
        matcher = LLMatcher(self._tokenizer, _source(grammar), log_level=0, limits=_LIMITS)
        # The first mask builds what all others share, and shows what no answer could begin with.
        matcher.compute_bitmask()
        if matcher.is_error():
            raise ValueError(_reason(matcher, grammar))
        if matcher.is_stopped():
            raise ValueError("it matches no answer")
        return matcher


def _source(grammar: Grammar) -> str:
    """The grammar in llguidance's own terms."""
    if grammar.kind == "json":
        options: Any = {"whitespace_pattern": BLANKS, "lenient": grammar.lenient, "coerce_one_of": grammar.lenient}
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides=options)
    return grammar_from("grammar" if grammar.kind == "tools" else grammar.kind, grammar.text)


def _reason(matcher: LLMatcher, grammar: Grammar) -> str:
    """Why a matcher has failed; llguidance adds a quotation of lines, which of tools no caller has written."""
    text = matcher.get_error()
    if (found := _OF_A_PART.match(text)) and int(found["line"]) in grammar.parts:
        text = f"{grammar.parts[int(found['line'])]}: {found['problem']}"
    text = " ".join(text.split()).rstrip(".")
    if text.startswith("NoExtensionBias"):
        return "no text ever ends it, as where a `$ref` only leads back to itself"
    if text == "invalid multiple of":
        return "`multipleOf` should be a number above 0"
    return text if len(text) <= 300 else f"{text[:200]} ... {text[-97:]}"


class Constraint:
    """How far one answer has come in its grammar."""

    def __init__(self, grammar: Grammar, compiled: LLMatcher) -> None:
        self._grammar = grammar
        self.matcher = compiled.deep_copy()

    @property
    def complete(self) -> bool:
        """Whether nothing may follow."""
        return self.matcher.is_stopped()

    def take(self, token: int) -> None:
        """Go on by a token that was allowed."""
        self.matcher.consume_token(token)
        self.check()

    def check(self) -> None:
        """Raises InvalidRequest where a step took more than the limits allow; the answer cannot go on."""
        if self.matcher.is_error():
            reason = _reason(self.matcher, self._grammar)
            raise self._grammar.refusal(f"it became too complex on the way ({reason}); simplify it")


class Masks:
    """Works out the tokens that are allowed next, for all answers at once, while the model computes their logits."""

    def __init__(self, size: int, eos_ids: Collection[int]) -> None:
        """size: columns of the logits."""
        self._executor = LLExecutor()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="covervlm-masks")
        self._size = size
        self._known = size if eos_ids else size + 1  # llguidance adds an end token where there is none
        self._eos_ids = sorted(eos_ids)

    def begin(self, constraints: Sequence[Constraint]) -> "Future[Tensor]":
        """To be added to the answers' logits: (len(constraints), V) float32, 0 for what is allowed and else -inf."""
        return self._pool.submit(self._barriers, constraints)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _barriers(self, constraints: Sequence[Constraint]) -> Tensor:
        words = np.empty((len(constraints), -(-self._known // 32)), np.int32)
        matchers = [(constraint.matcher, row) for row, constraint in enumerate(constraints)]
        self._executor.unsafe_compute_mask_ptr(matchers, words.ctypes.data, words.strides[0], len(constraints))
        barriers = _OF_BYTE.take(words.view(np.uint8), axis=0).reshape(len(constraints), -1)[:, : self._size]
        if self._eos_ids:
            # The grammar knows only the lowest of them.
            barriers[:, self._eos_ids] = barriers[:, self._eos_ids[:1]]
        return torch.from_numpy(barriers)
