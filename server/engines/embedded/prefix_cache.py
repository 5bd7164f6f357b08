"""Keys and values of prompts that were read before, so that a later turn of a chat reads its own words alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray
from torch import Tensor

_MOST = 256
"""Prompts that are kept, however short they are: each is compared with every new one of its owner."""

Read = NDArray[np.int64]
"""What stands at each place of a prompt (T,): a token's id, or below 0 a number of an image and a place in it.

Where two prompts are equal up to a place, so are their keys and values.
"""
Layers = Sequence[tuple[Tensor, Tensor]]
"""Keys and values (1, H, T, D) of every layer."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The first `length` tokens of a prompt, and what the layers made of them; further columns belong to others."""

    length: int
    layers: Layers


@dataclass(frozen=True, eq=False)
class _Entry:
    owner: str
    tokens: Read
    layers: Layers

    @property
    def nbytes(self) -> int:
        return sum(side.numel() * side.element_size() for layer in self.layers for side in layer)


class PrefixCache:
    """Least recently used prompts go first; 0 bytes turns it off.

    Owners find their own prompts alone, since how soon an answer begins would tell them of others'. Used by the
    engine's thread alone.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity = capacity_bytes
        least = max(1, capacity_bytes // _MOST)
        self._entries: LRUCache[int, _Entry] = LRUCache(
            capacity_bytes, getsizeof=lambda entry: max(least, entry.nbytes)
        )
        self._made = 0

    @property
    def bytes(self) -> int:
        return int(self._entries.currsize)

    def find(self, owner: str, tokens: Read) -> Prefix | None:
        """The longest known beginning of a prompt, without its last token, which is always read.

        None where it is less than a quarter: to read the whole together with other prompts is then as quick.
        """
        shared = {name: min(_shared(entry.tokens, tokens), len(tokens) - 1) for name, entry in self._of(owner)}
        best = max(shared, key=shared.__getitem__, default=None)
        if best is None or shared[best] * 4 < len(tokens):
            return None
        return Prefix(shared[best], self._entries[best].layers)

    def knows(self, owner: str, tokens: Read) -> bool:
        """Whether an entry begins with all of these tokens."""
        return any(_shared(entry.tokens, tokens) == len(tokens) for _, entry in self._of(owner))

    def put(self, owner: str, tokens: Read, layers: Layers) -> None:
        """Remember a prompt in place of those that it continues. layers: len(tokens) columns, nobody else's."""
        entry = _Entry(owner, tokens, layers)
        for name, other in self._of(owner):
            if _shared(other.tokens, tokens) == len(other.tokens):
                del self._entries[name]
        if entry.nbytes <= self._entries.maxsize:
            self._made += 1
            self._entries[self._made] = entry

    def _of(self, owner: str) -> list[tuple[int, _Entry]]:
        return [(name, entry) for name, entry in self._entries.items() if entry.owner == owner]


def _shared(one: Read, other: Read) -> int:
    """At how many places two prompts are equal from their beginning on."""
    length = min(len(one), len(other))
    differ = one[:length] != other[:length]
    return int(differ.argmax()) if differ.any() else length


def places_of(key: str, places: Iterable[int]) -> list[int]:
    """What stands for the vision tokens at places in an image's unpruned sequence, by the image's key."""
    return [~(hash((key, place)) & 2**62 - 1) for place in places]
