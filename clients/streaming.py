"""A streamed answer: pieces of text as they come, and the whole answer once they have ended."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from covervlm.clients.answers import ChatAnswer, PrunedImage, Usage, read_pruning
from covervlm.clients.errors import APIConnectionError, ResponseFormatError, connection_errors, stream_error


class Reader:
    """Reads the lines of a chat completion's event stream; knows nothing of the connection they come over."""

    def __init__(self, request_id: str | None = None) -> None:
        self._request_id = request_id
        self._text: list[str] = []
        self._head: dict[str, Any] = {}
        self._finish_reason = ""
        self._usage: Usage | None = None
        self.images: tuple[PrunedImage, ...] = ()
        self.seconds: Any = {}
        self.ended = False

    def take(self, line: str) -> str:
        """The text that this line adds, often none. Raises APIStatusError where it tells of a failure."""
        field, _, data = line.partition(":")
        if field != "data":
            return ""
        if data.strip() == "[DONE]":
            self.ended = True
            return ""
        try:
            event = json.loads(data)
            return self._event(event) if "error" not in event else self._fail(event["error"])
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise ResponseFormatError("The stream is not a covervlm server's.") from error

    def answer(self) -> ChatAnswer:
        """The whole answer. Raises APIConnectionError where the stream broke off before its end."""
        if not self.ended or self._usage is None:
            raise APIConnectionError("The stream broke off before the answer was complete.")
        return ChatAnswer(
            self._head["id"],
            self._head["model"],
            "".join(self._text),
            self._finish_reason,
            self._usage,
            self.images,
            self.seconds,
        )

    def _event(self, event: dict[str, Any]) -> str:
        self._head = self._head or {"id": event["id"], "model": event["model"]}
        if event.get("vision_pruning"):
            self.images, self.seconds = read_pruning(event["vision_pruning"])
        if event.get("usage"):
            self._usage = Usage.read(event["usage"])
        text = ""
        for choice in event["choices"]:
            if choice["index"] == 0:
                text += choice["delta"].get("content") or ""
                self._finish_reason = choice["finish_reason"] or self._finish_reason
        self._text.append(text)
        return text

    def _fail(self, detail: dict[str, Any]) -> str:
        raise stream_error(detail, self._request_id)


class _Progress:
    """What both kinds of stream tell on the way and in the end."""

    _reader: Reader | None = None
    _answer: ChatAnswer | None = None

    @property
    def images(self) -> tuple[PrunedImage, ...]:
        """What was pruned, one report per image; known from the first piece on, empty before."""
        return self._reader.images if self._reader else ()

    @property
    def answer(self) -> ChatAnswer:
        """The whole answer. Raises RuntimeError until the stream has been read to its end."""
        if self._answer is None:
            raise RuntimeError("the stream has not been read to its end")
        return self._answer


class Stream(_Progress):
    """Iterate over it once for pieces of text; the request is sent when that begins.

    Leaving the loop early ends the generation too, at once where the stream is used in a `with` block.
    """

    def __init__(self, send: Callable[[], httpx.Response]) -> None:
        self._send = send
        self._pieces: Iterator[str] | None = None
        self._response: httpx.Response | None = None

    def __iter__(self) -> Iterator[str]:
        if self._pieces is None:
            self._pieces = self._read()
        return self._pieces

    def close(self) -> None:
        """Let go of the connection; the server stops generating."""
        if self._response is not None:
            self._response.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> Iterator[str]:
        self._response = response = self._send()
        self._reader = reader = Reader(response.headers.get("x-request-id"))
        try:
            with connection_errors():
                for line in response.iter_lines():
                    if piece := reader.take(line):
                        yield piece
            self._answer = reader.answer()
        finally:
            response.close()


class AsyncStream(_Progress):
    """Stream for `async for` and `async with`."""

    def __init__(self, send: Callable[[], Awaitable[httpx.Response]]) -> None:
        self._send = send
        self._pieces: AsyncIterator[str] | None = None
        self._response: httpx.Response | None = None

    def __aiter__(self) -> AsyncIterator[str]:
        if self._pieces is None:
            self._pieces = self._read()
        return self._pieces

    async def close(self) -> None:
        """Let go of the connection; the server stops generating."""
        if self._response is not None:
            await self._response.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _read(self) -> AsyncIterator[str]:
        self._response = response = await self._send()
        self._reader = reader = Reader(response.headers.get("x-request-id"))
        try:
            with connection_errors():
                async for line in response.aiter_lines():
                    if piece := reader.take(line):
                        yield piece
            self._answer = reader.answer()
        finally:
            await response.aclose()
