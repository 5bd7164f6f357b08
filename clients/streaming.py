"""A streamed answer: pieces of text as they come, and the whole answer once they have ended."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any, ParamSpec, Self

import httpx

from covervlm.clients.calls import Call, Connection, finished, iterated
from covervlm.clients.conversations import ChatAnswer, PrunedImage, read_pruning, streamed
from covervlm.clients.errors import APIConnectionError, format_errors
from covervlm.clients.methods import Method

P = ParamSpec("P")


class _Reader:
    """Puts the response together from the events of a streamed chat completion."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._response: dict[str, Any] = {}
        self._finish_reason = ""

    def take(self, event: Any) -> str:
        """The text that this event adds, often none."""
        known = {name: event[name] for name in ("vision_pruning", "usage") if event.get(name)}
        self._response |= {"id": event["id"], "model": event["model"], **known}
        text = ""
        for choice in event["choices"]:
            if choice["index"] == 0:
                text += choice["delta"].get("content") or ""
                self._finish_reason = choice["finish_reason"] or self._finish_reason
        self._text.append(text)
        return text

    @property
    def images(self) -> tuple[PrunedImage, ...]:
        return read_pruning(self._response.get("vision_pruning"))[0]

    def response(self) -> dict[str, Any]:
        """What would have come unstreamed. Raises APIConnectionError where its last part, the usage, never came."""
        if "usage" not in self._response:
            raise APIConnectionError("The stream broke off before the answer was complete.")
        message = {"message": {"content": "".join(self._text)}, "finish_reason": self._finish_reason}
        return {**self._response, "choices": [message]}


class _Streamed:
    """What both kinds of stream share: reading the answer once, and what has been read so far."""

    def __init__(self, connection: Connection, make: Callable[[], Call[ChatAnswer]]) -> None:
        self._connection = connection
        self._make = make
        self._reader = _Reader()
        self._response: httpx.Response | None = None
        self._answer: ChatAnswer | None = None

    @property
    def images(self) -> tuple[PrunedImage, ...]:
        """What was pruned, one report per image; known from the first piece on, empty before."""
        return self._reader.images

    @property
    def answer(self) -> ChatAnswer:
        """The whole answer. Raises RuntimeError until the stream has been read to its end."""
        if self._answer is None:
            raise RuntimeError("the stream has not been read to its end")
        return self._answer

    async def _read(self) -> AsyncGenerator[str, None]:
        call = await self._connection.http.run(self._make)
        self._response = response = await self._connection.open(streamed(call))
        async with aclosing(self._connection.events(response, self._reader.take)) as pieces:
            async for piece in pieces:
                if piece:
                    yield piece
        with format_errors("The stream"):
            self._answer = replace(call.read(self._reader.response()), raw=None)

    async def _close(self) -> None:
        if self._response is not None:
            await self._connection.http.close(self._response)


class Stream(_Streamed):
    """Iterate over it once for pieces of text; the request is sent when that begins.

    Leaving the loop early ends the generation too, at once where the stream is used in a `with` block.
    """

    def __init__(self, connection: Connection, make: Callable[[], Call[ChatAnswer]]) -> None:
        call = make()  # now, so that wrong arguments fail where they are given
        super().__init__(connection, lambda: call)
        self._pieces = iterated(self._read())

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def close(self) -> None:
        """Close the connection; the server stops generating."""
        finished(self._close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncStream(_Streamed):
    """Stream for `async for` and `async with`."""

    def __init__(self, connection: Connection, make: Callable[[], Call[ChatAnswer]]) -> None:
        super().__init__(connection, make)
        self._pieces = self._read()

    def __aiter__(self) -> AsyncIterator[str]:
        return self._pieces

    async def close(self) -> None:
        """Close the connection; the server stops generating."""
        await self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def streaming(make: Callable[P, Call[ChatAnswer]]) -> Method[P, Stream, AsyncStream]:
    """A method that returns the answer to the call that `make` makes as a stream."""

    def stream(self: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._stream(self._connection, partial(make, *args, **kwargs))

    return Method(stream, make, "The same, but streamed: `for piece in client.stream(...)`, or `async for`.")
