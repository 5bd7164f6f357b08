"""Finds calls of functions in an answer that is still growing, wherever it was cut into pieces."""

import uuid
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import regex

from covervlm.server.core.answer import ArgumentsDelta, CallBegins, TextDelta
from covervlm.server.tools.formats import ToolFormat

_HEAD = r"""
    \{ \s* (?: "(?:id|type)" \s*:\s* "[\w-]{0,64}" \s*,\s* )*
    (?: "name" \s*:\s* "(?P<name>[\w-]{1,64})" \s* (?: ,\s* "(?:arguments|parameters)" \s*:\s* (?P<open>\{) | \} )
      | "(?:arguments|parameters)" \s*:\s* (?P<first>\{) )
"""
_NAME = regex.compile(r'\s*,\s*"name"\s*:\s*"(?P<name>[\w-]{1,64})"\s*\}')
_JSON = frozenset('{}[]:,"+-. \t\r\nabcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789')
"""Characters that JSON may have outside of strings."""


_BETWEEN = " \t\r\n},;]`"
"""What may stand between a call's arguments and the next call, or the end of a list or a fence."""


@cache
def _patterns(marker: str) -> tuple[Any, Any]:
    """A call that begins an answer or follows another, and one in the middle, None where there can be none."""
    mark = regex.escape(marker)
    bare = regex.compile(rf"\s* (?:{mark})? \s* (?:```(?:json)?)? \s* \[? \s* {_HEAD}", regex.VERBOSE)
    marked = regex.compile(rf"\s* {mark} \s* \[? \s* {_HEAD}", regex.VERBOSE) if marker else None
    return bare, marked


class CallReader:
    """Reads one choice. Whatever is not a call is text, and so is a call of a function that does not exist.

    Arguments are passed on as they come, up to the end of their object or to what cannot be JSON.
    """

    def __init__(self, form: ToolFormat, names: Collection[str], *, index: int = 0, many: bool = True) -> None:
        """many: whether there may be calls after the first, which are left out otherwise."""
        self.calls = 0
        self._form = form
        self._names = names
        self._index = index
        self._many = many
        self._bare, self._marked = _patterns(form.marker)
        self._closing = form.after.strip()
        self._held = ""
        self._read = self._beginning
        self._value = _Object()
        self._start = self._head = 0  # of arguments that came before their function's name, in what is held

    def feed(self, text: str) -> Iterator[TextDelta | CallBegins | ArgumentsDelta]:
        """The parts that are certain once this text has come."""
        self._held += text
        before = None
        while before != (before := (self._read, len(self._held))):  # until nothing more is certain
            yield from self._read()

    def end(self) -> Iterator[TextDelta | CallBegins | ArgumentsDelta]:
        """Text that was held back for a call that never came; behind a call, one that is cut short is dropped."""
        if self.calls and self._read in (self._beginning, self._arguments_first):
            return
        if self._read in (self._beginning, self._text, self._arguments_first):
            yield from self._say(len(self._held))

    def _beginning(self) -> Iterator[Any]:
        """A call may begin here without its marker."""
        found = self._bare.match(self._held, partial=True)
        if found is None:
            self._read = self._text
        elif not found.partial:
            yield from self._called(found)

    def _text(self) -> Iterator[Any]:
        if self._marked is None:
            yield from self._say(len(self._held))
        elif found := self._marked.search(self._held, partial=True):
            yield from self._say(found.start())
            if not found.partial:
                yield from self._called(self._marked.match(self._held))
        else:
            yield from self._say(len(self._held))

    def _called(self, found: Any) -> Iterator[Any]:
        """found: the head of a call at the beginning of what is held."""
        self._value = _Object()
        if found["first"]:
            self._start = self._head = found.end() - 1
            self._read = self._arguments_first
        elif found["name"] not in self._names:
            self._read = self._text
            yield from self._say(found.end())
        else:
            yield self._begin(found["name"])
            self._held = self._held[found.end() - 1 :]
            if found["open"]:
                self._read = self._arguments
            else:
                yield ArgumentsDelta(self._index, self.calls - 1, "{}")
                self._read = self._after

    def _arguments(self) -> Iterator[Any]:
        count = self._value.take(self._held)
        piece, self._held = self._held[:count], self._held[count:]
        if piece:
            yield ArgumentsDelta(self._index, self.calls - 1, piece)
        if self._value.complete:
            self._read = self._after

    def _arguments_first(self) -> Iterator[Any]:
        """Arguments that wait for the name of their function."""
        self._head += self._value.take(self._held[self._head :])
        if not self._value.complete:
            return
        found = _NAME.match(self._held, self._head, partial=True)
        if found is None or (not found.partial and found["name"] not in self._names):
            self._read = self._text
            yield from self._say(self._head)
        elif not found.partial:
            yield self._begin(found["name"])
            yield ArgumentsDelta(self._index, self.calls - 1, self._held[self._start : self._head])
            self._held = self._held[found.end() - 1 :]
            self._read = self._after

    def _after(self) -> Iterator[Any]:
        self._held = self._held.lstrip(_BETWEEN)
        if self._closing and self._held.startswith(self._closing):
            self._held = self._held[len(self._closing) :]
        elif self._held and not self._closing.startswith(self._held):
            self._read = self._beginning if self._many else self._done
        yield from ()

    def _done(self) -> Iterator[Any]:
        self._held = ""
        yield from ()

    def _begin(self, name: str) -> CallBegins:
        self.calls += 1
        id = uuid.uuid4().hex
        return CallBegins(self._index, self.calls - 1, id[:9] if self._form.short_ids else f"call_{id[:24]}", name)

    def _say(self, count: int) -> Iterator[TextDelta]:
        text, self._held = self._held[:count], self._held[count:]
        if text:
            yield TextDelta(self._index, text)


class _Object:
    """Where an object of JSON ends."""

    def __init__(self) -> None:
        self.complete = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def take(self, text: str) -> int:
        """How many more characters belong to it."""
        for count, character in enumerate(text):
            if self.complete:
                return count
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character not in _JSON:
                self.complete = True
                return count
            else:
                self._in_string = character == '"'
                self._depth += (character in "{[") - (character in "}]")
                self.complete = not self._depth
        return len(text)
