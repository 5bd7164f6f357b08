"""Finds the user's words in a tokenised chat, between the tokens that the chat template puts around them."""

from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile

from covervlm.server.core.generation import Message
from covervlm.server.models.processor import ChatProcessor

Ids = Sequence[int]

_SPELLED = ("apple", "bird", "cup", "moon", "river", "stone")


class UserTurns:
    """Reads the user's turns out of prompts that a chat template made.

    The template is rendered once with several probe words in the user's place; the tokens that never change are the
    template's. What stands between the header of a user's turn and what follows it is the user's.
    """

    def __init__(self, chat: ChatProcessor) -> None:
        self._chat = chat

    def texts(self, prompt: Ids) -> list[str]:
        """The text of every user turn, in order.

        A prompt that the model's own template did not make has one turn: all of its text.
        """
        header, end = self._markers
        turns, at = [], 0
        while header and end and (start := _find(prompt, header, at)) >= 0:
            start += len(header)
            stop = _find(prompt, end, start)
            if stop < 0:
                break
            turns.append(prompt[start:stop])
            at = stop + len(end)
        return [self._text(turn) for turn in turns or [prompt]]

    def _text(self, ids: Ids) -> str:
        drop = set(self._chat.placeholders.values())
        kept = [token for token in ids if token not in drop]
        return str(self._chat.tokenizer.decode(kept, skip_special_tokens=True)).strip()

    @cached_property
    def _markers(self) -> tuple[list[int], list[int]]:
        """Tokens that open a user's turn, and tokens that follow it; empty where the template shows none."""
        words = self._probes()
        if len(words) < 2:
            return [], []
        try:
            alone = [self._render(word) for word in words]
            chats = [self._render(words[0], word, words[1]) for word in words]
            ends = [self._render(words[0], words[1], word) for word in words]
        except Exception:  # a template may refuse any chat; it can then not be read
            return [], []
        head = _common_prefix(alone)  # before the first turn of the user
        tail = _common_suffix(alone)  # after the last
        first, last = (len(alone[i]) - len(head) - len(tail) for i in (0, 1))
        between = _common_prefix(chats)[len(head) + first :]  # from the user to the assistant
        length = len(_common_suffix(chats)) - last - len(tail)
        back = _common_prefix(ends)[-length:] if length > 0 else []  # from the assistant to the user
        header = _common_suffix([head, back]) if back else head
        end = _common_prefix([tail, between]) if between else tail
        return header, end

    def _render(self, *turns: str) -> list[int]:
        messages = [Message("user" if i % 2 == 0 else "assistant", (text,)) for i, text in enumerate(turns)]
        return list(self._chat.tokenize(tuple(messages)))

    def _probes(self) -> list[str]:
        """Words with different tokens, out of the tokenizer's own vocabulary: unknown ones would all look alike.

        A vocabulary without whole words, of bytes say, spells any word.
        """
        tokenizer = self._chat.tokenizer
        special = set(tokenizer.all_special_tokens)
        words = sorted({w for t in tokenizer.get_vocab() if t not in special and (w := t.strip("▁Ġ ")).isalpha()})
        words = [word for word in words if word.isascii() and word.islower() and len(word) > 2]
        picked: dict[tuple[int, ...], str] = {}
        for word in words[:: max(1, len(words) // 8)] or _SPELLED:
            ids = tuple(self._chat.word_ids([word]))
            if ids and tokenizer.unk_token_id not in ids:
                picked.setdefault(ids, word)
        return list(picked.values())[:6]


def _common_prefix(sequences: Sequence[Ids]) -> list[int]:
    return [ids[0] for ids in takewhile(lambda ids: len(set(ids)) == 1, zip(*sequences, strict=False))]


def _common_suffix(sequences: Sequence[Ids]) -> list[int]:
    return _common_prefix([sequence[::-1] for sequence in sequences])[::-1]


def _find(sequence: Ids, part: Ids, start: int) -> int:
    """Where `part` first occurs at or after `start`; -1 if nowhere."""
    part, starts = list(part), range(start, len(sequence) - len(part) + 1)
    return next((i for i in starts if list(sequence[i : i + len(part)]) == part), -1)
