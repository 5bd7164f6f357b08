"""Requests as plain values, and the connection that sends them; written once for both kinds of client."""

import dataclasses
import json
import os
import platform
from asyncio import sleep as async_sleep
from asyncio import to_thread
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from importlib.metadata import version
from time import sleep
from typing import Any, Generic, Self, TypeVar

import httpx
from httpx_sse import EventSource, ServerSentEvent

from covervlm.clients.errors import (
    APIConnectionError,
    APIError,
    RetryPolicy,
    connection_errors,
    format_errors,
    status_error,
    stream_error,
)
from covervlm.clients.images import data_url, remote_images, with_images

R = TypeVar("R")

BASE_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT = 10.0
LARGEST_DOWNLOAD = 64 * 1024 * 1024
"""Bytes of an image that is fetched from the web; the server's default limit for a whole request."""


@dataclass(frozen=True)
class Call(Generic[R]):
    """One request. `read` makes the result from the answer's JSON, or from its bytes where the call is `binary`.

    body: sent as JSON; a `model` of None in it stands for the model that is served. content: sent as it is, in place
    of a body. timeout: seconds without a byte from the server; None for the client's own. repeatable: whether sending
    the call twice does no harm.
    """

    method: str
    path: str
    read: Callable[[Any], R]
    body: Mapping[str, Any] | None = None
    content: bytes | None = field(default=None, repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    binary: bool = False
    repeatable: bool = True

    def with_body(self, body: Mapping[str, Any]) -> Self:
        return dataclasses.replace(self, body=body)


def given(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def listed(texts: Sequence[str] | None) -> list[str] | None:
    """The texts as JSON takes them."""
    return None if texts is None else list(texts)


class BlockingHttp:
    """httpx.Client behind coroutines that block instead of awaiting, so that `finished` can run them without a loop."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        return self.client.send(request, **options)

    async def read(self, response: httpx.Response) -> bytes:
        return response.read()

    async def close(self, response: httpx.Response) -> None:
        response.close()

    async def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        for chunk in response.iter_bytes():
            yield chunk

    async def events(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
        for event in EventSource(response).iter_sse():
            yield event

    async def sleep(self, seconds: float) -> None:
        sleep(seconds)

    async def run(self, work: Callable[[], R]) -> R:
        return work()


class AsyncHttp:
    """httpx.AsyncClient with the same methods."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def send(self, request: httpx.Request, **options: Any) -> httpx.Response:
        return await self.client.send(request, **options)

    async def read(self, response: httpx.Response) -> bytes:
        return await response.aread()

    async def close(self, response: httpx.Response) -> None:
        await response.aclose()

    def chunks(self, response: httpx.Response) -> AsyncIterator[bytes]:
        return response.aiter_bytes()

    def events(self, response: httpx.Response) -> AsyncGenerator[ServerSentEvent, None]:
        return EventSource(response).aiter_sse()

    async def sleep(self, seconds: float) -> None:
        await async_sleep(seconds)

    async def run(self, work: Callable[[], R]) -> R:
        return await to_thread(work)


def finished(coroutine: Coroutine[Any, Any, R]) -> R:
    """Runs a coroutine that uses BlockingHttp to its end; it never suspends, and so needs no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    raise RuntimeError("a blocking call waited for an event loop")


def iterated(items: AsyncGenerator[R, None]) -> Iterator[R]:
    """The items of an asynchronous generator over BlockingHttp."""
    try:
        while True:
            try:
                item = finished(items.__anext__())
            except StopAsyncIteration:
                return
            yield item
    finally:
        finished(items.aclose())


class Connection:
    """Sends calls to one server, and repeats them as its retry policy says.

    base_url: the server's address; OpenAI's form of it, which ends in /v1, is fine. COVERVLM_BASE_URL and
    COVERVLM_API_KEY of the environment stand in for what is None. Raises ValueError for a base URL without a scheme.
    """

    def __init__(
        self,
        http: BlockingHttp | AsyncHttp,
        base_url: str | None,
        api_key: str | None,
        model: str | None,
        retries: int | RetryPolicy,
    ) -> None:
        self.http = http
        self.base_url = (base_url or os.environ.get("COVERVLM_BASE_URL") or BASE_URL).rstrip("/").removesuffix("/v1")
        if not self.base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url starts with http:// or https://, unlike {self.base_url!r}")
        self.retries = RetryPolicy(retries) if isinstance(retries, int) else retries
        self._headers = {"User-Agent": f"covervlm-python/{version('covervlm')} ({platform.python_version()})"}
        if key := api_key or os.environ.get("COVERVLM_API_KEY"):
            self._headers["Authorization"] = f"Bearer {key}"
        self._model = model

    async def make_and_send(self, make: Callable[[], Call[R]]) -> R:
        """The result of the call that `make` makes; reading and encoding its images may take a while."""
        return await self.send(await self.http.run(make))

    async def send(self, call: Call[R]) -> R:
        """The call's result. Raises APIError."""
        response = await self.open(call, stream=False)
        with format_errors(f"The answer to {call.method} {call.path}"):
            return call.read(response.content if call.binary else response.json())

    async def open(self, call: Call[Any], *, stream: bool = True) -> httpx.Response:
        """The response once its headers are there, for whoever reads it to close; without `stream`, read and closed."""
        call = await self._completed(call)
        attempt = 0
        while True:
            try:
                return await self._try(call, stream)
            except APIError as error:
                delay = self.retries.delay(attempt, error, repeatable=call.repeatable)
                if delay is None:
                    raise
            await self.http.sleep(delay)
            attempt += 1

    async def events(self, response: httpx.Response, read: Callable[[Any], R]) -> AsyncGenerator[R, None]:
        """What `read` makes of the JSON of each event of a stream that ends with [DONE]; closes the response.

        Raises APIStatusError for an event that reports a failure, and APIConnectionError for a stream that breaks off.
        """
        # httpx-sse checks the content type; a response that has none is taken for an event stream.
        response.headers.setdefault("Content-Type", "text/event-stream")
        try:
            with connection_errors():
                async with aclosing(self.http.events(response)) as events:
                    async for event in events:
                        if event.data == "[DONE]":
                            return
                        # A keep-alive has no data. (The SSE standard drops it, which httpx-sse leaves to its caller.)
                        if event.data:
                            yield _read(event.data, read, response.headers.get("x-request-id"))
        finally:
            await self.http.close(response)
        raise APIConnectionError("The stream broke off before its end.")

    async def _try(self, call: Call[Any], stream: bool) -> httpx.Response:
        timeout = None if call.timeout is None else timeouts(call.timeout)
        optional = given(json=call.body, content=call.content, timeout=timeout)
        url, headers = self.base_url + call.path, {**self._headers, **call.headers}
        with connection_errors():
            request = self.http.client.build_request(call.method, url, headers=headers, **optional)
            response = await self.http.send(request, stream=stream)
            if response.is_success:
                return response
            try:
                await self.http.read(response)
            finally:
                await self.http.close(response)
        raise status_error(response)

    async def _completed(self, call: Call[R]) -> Call[R]:
        """The call with the served model's name where it names none, and with images from the web as data URLs."""
        if call.body is None:
            return call
        if call.body.get("model", "") is None:
            if self._model is None:
                self._model = await self.send(Call("GET", "/v1/models", lambda body: str(body["data"][0]["id"])))
            call = call.with_body({**call.body, "model": self._model})
        urls = {url: data_url(await self._fetch(url)) for url in remote_images(call.body)}
        return call.with_body(with_images(call.body, urls)) if urls else call

    async def _fetch(self, url: str) -> bytes:
        """Downloads the file at a URL; the API key is not sent there.

        Raises ValueError where it cannot be had, or is too large for a request: it is the image that fails, not the
        server that is asked.
        """
        data = bytearray()
        try:
            request = self.http.client.build_request("GET", url)
            response = await self.http.send(request, stream=True, follow_redirects=True)
            try:
                if not response.is_success:
                    raise ValueError(f"the image at {url} cannot be fetched: HTTP {response.status_code}")
                async for chunk in self.http.chunks(response):
                    data += chunk
                    if len(data) > LARGEST_DOWNLOAD:
                        raise ValueError(f"the image at {url} has more than {LARGEST_DOWNLOAD} bytes")
            finally:
                await self.http.close(response)
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ValueError(f"the image at {url} cannot be fetched: {error or type(error).__name__}") from error
        return bytes(data)


def timeouts(seconds: float) -> httpx.Timeout:
    """`seconds` without a byte from the server; less for making the connection."""
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))


def _read(data: str, read: Callable[[Any], R], request_id: str | None) -> R:
    """What `read` makes of an event's JSON. Raises the APIStatusError that it holds, if it does."""
    with format_errors("The stream"):
        event = json.loads(data)
        # A job has a field `error` as well, which says why the job failed; but it has an id.
        if "error" in event and "id" not in event:
            raise stream_error(event["error"], request_id)
        return read(event)
