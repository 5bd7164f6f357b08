"""AsyncClient: the same calls for asyncio."""

from asyncio import sleep, to_thread
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, Unpack

import httpx

from covervlm.clients import calls
from covervlm.clients.answers import ChatAnswer, Model, PruneResult
from covervlm.clients.calls import Call, ChatOptions, PruneOptions, Result
from covervlm.clients.connection import Connection, Download, read, timeouts
from covervlm.clients.errors import APIError, connection_errors, status_error
from covervlm.clients.images import Images, ImageSource, sources
from covervlm.clients.messages import Message, remote_images, user, with_images
from covervlm.clients.retries import RetryPolicy
from covervlm.clients.streaming import AsyncStream


class AsyncClient:
    """Client for asyncio: the same arguments, methods and errors. Close it, or use it in an `async with` block."""

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 120.0,
        retries: int | RetryPolicy = 4,
        http_client: httpx.AsyncClient | None = None,
    ) -> None:
        self._connection = Connection.to(base_url, api_key)
        self._model = model
        self._retries = RetryPolicy(retries) if isinstance(retries, int) else retries
        self._owned = http_client is None
        self._http = http_client or httpx.AsyncClient(timeout=timeouts(timeout))

    async def chat(
        self, image: Images, question: str, *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatAnswer:
        """The answer to a question about an image, or several in a list, or none (None). ChatOptions has the options.

        An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array.
        """
        return await self.chat_messages([await _user(image, question)], model=model, **options)

    def stream(
        self, image: Images, question: str, *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncStream:
        """The same answer piece by piece: `async for piece in client.stream(...)`."""

        async def send() -> httpx.Response:
            return await self._open([await _user(image, question)], model, options)

        return AsyncStream(send)

    async def chat_messages(
        self, messages: Sequence[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatAnswer:
        """The answer to a conversation; `covervlm.clients.user`, `assistant` and `system` make its messages."""
        return await self._result(calls.chat(await self._served(model), await self._embedded(messages), **options))

    def stream_messages(
        self, messages: Sequence[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> AsyncStream:
        """The same answer piece by piece."""
        return AsyncStream(lambda: self._open(messages, model, options))

    async def prune(
        self, image: ImageSource, question: str, *, model: str | None = None, **options: Unpack[PruneOptions]
    ) -> PruneResult:
        """Which vision tokens of an image a question keeps, without generating an answer."""
        messages = await self._embedded([await _user(image, question)])
        return await self._result(calls.prune(await self._served(model), messages, **options))

    async def models(self) -> list[Model]:
        """The served model, then its names with a budget."""
        return await self._result(calls.list_models())

    async def close(self) -> None:
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _served(self, model: str | None) -> str:
        """The name to ask for: the call's, the client's, or what the server serves."""
        name = model or self._model
        if name is None:
            name = self._model = (await self.models())[0].id
        return name

    async def _embedded(self, messages: Sequence[Message]) -> Sequence[Message]:
        return with_images(messages, {url: await self._fetch(url) for url in remote_images(messages)})

    async def _fetch(self, url: str) -> bytes:
        download = Download(url)
        with connection_errors():
            async with self._http.stream("GET", url, follow_redirects=True) as response:
                download.check(response)
                async for part in response.aiter_bytes():
                    download.take(part)
        return download.data

    async def _open(self, messages: Sequence[Message], model: str | None, options: ChatOptions) -> httpx.Response:
        call = calls.chat(await self._served(model), await self._embedded(messages), **options)
        return await self._send(calls.streamed(call), stream=True)

    async def _result(self, call: Call[Result]) -> Result:
        return read(call, await self._send(call, stream=False))

    async def _send(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        """A response that is a success, after as many tries as the policy allows; a streamed one is left open."""
        attempt = 0
        while True:
            try:
                return await self._try(call, stream=stream)
            except APIError as error:
                delay = self._retries.delay(attempt, error)
                if delay is None:
                    raise
            await sleep(delay)
            attempt += 1

    async def _try(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        with connection_errors():
            request = self._http.build_request(**self._connection.request(call))
            response = await self._http.send(request, stream=stream)
            if response.is_success:
                return response
            try:
                await response.aread()
            finally:
                await response.aclose()
        raise status_error(response)


async def _user(image: Images, question: str) -> Message:
    # Reading and encoding take long enough to be felt on the event loop.
    return await to_thread(user, question, *sources(image))
