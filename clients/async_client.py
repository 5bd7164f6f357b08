"""AsyncClient: the same calls for asyncio."""

from asyncio import sleep
from types import TracebackType
from typing import Any, Self

import httpx

from covervlm.clients import clusterings, conversations, embeddings, zero_shot
from covervlm.clients.calls import Call, Result
from covervlm.clients.classifiers import AsyncClassifiers
from covervlm.clients.connection import Connection, read, timeouts
from covervlm.clients.errors import APIError, connection_errors, status_error
from covervlm.clients.methods import async_streaming, asynchronous
from covervlm.clients.retries import RetryPolicy
from covervlm.clients.sessions import AsyncSessions
from covervlm.clients.watching import AsyncJobs
from covervlm.clients.web_images import Download, remote_images, with_images


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
        self.retries = RetryPolicy(retries) if isinstance(retries, int) else retries
        self._connection = Connection.to(base_url, api_key)
        self._model = model
        self._owned = http_client is None
        self._http = http_client or httpx.AsyncClient(timeout=timeouts(timeout))
        self.classifiers = AsyncClassifiers(self)
        self.sessions = AsyncSessions(self)
        self.jobs = AsyncJobs(self)

    chat = asynchronous(conversations.chat)
    stream = async_streaming(conversations.chat)
    chat_messages = asynchronous(conversations.chat_messages)
    stream_messages = async_streaming(conversations.chat_messages)
    prune = asynchronous(conversations.prune)
    models = asynchronous(conversations.models)
    embed_texts = asynchronous(embeddings.embed_texts)
    embed_images = asynchronous(embeddings.embed_images)
    classify = asynchronous(zero_shot.classify)
    cluster = asynchronous(clusterings.cluster)

    async def send(self, call: Call[Result]) -> Result:
        """The result of a call; what all methods above do with theirs."""
        return read(call, await self._tried(await self._completed(call), stream=False))

    async def open(self, call: Call[Any]) -> httpx.Response:
        """The response to a call once its headers are there; whoever reads it closes it."""
        return await self._tried(await self._completed(call), stream=True)

    async def close(self) -> None:
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _completed(self, call: Call[Result]) -> Call[Result]:
        """The call with what only this client knows: the served model's name, and images from the web."""
        if call.lacks_model:
            call = call.with_model(await self._served())
        return with_images(call, {url: await self._fetch(url) for url in remote_images(call)})

    async def _served(self) -> str:
        if self._model is None:
            self._model = (await self.models())[0].id
        return self._model

    async def _fetch(self, url: str) -> bytes:
        download = Download(url)
        with connection_errors():
            async with self._http.stream("GET", url, follow_redirects=True) as response:
                download.check(response)
                async for part in response.aiter_bytes():
                    download.take(part)
        return download.data

    async def _tried(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        """A response that is a success, after as many tries as the policy allows; a streamed one is left open."""
        attempt = 0
        while True:
            try:
                return await self._try(call, stream=stream)
            except APIError as error:
                delay = self.retries.delay(attempt, error, repeatable=call.repeatable)
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
