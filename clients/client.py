"""Client: blocking calls to a covervlm server."""

from collections.abc import Sequence
from contextlib import closing
from time import sleep
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
from covervlm.clients.streaming import Stream


class Client:
    """Calls to one server. Safe to share between threads; close it, or use it in a `with` block.

    base_url: by default COVERVLM_BASE_URL, else http://127.0.0.1:8000. api_key: by default COVERVLM_API_KEY.
    model: by default what the server serves. timeout: seconds without a byte from the server.
    retries: a count, or a whole RetryPolicy. http_client: an httpx.Client with its own proxies or certificates, which
    stays open. All calls raise subclasses of covervlm.clients.APIError, and OSError, TypeError or ValueError for
    images that cannot be read.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        timeout: float = 120.0,
        retries: int | RetryPolicy = 4,
        http_client: httpx.Client | None = None,
    ) -> None:
        self._connection = Connection.to(base_url, api_key)
        self._model = model
        self._retries = RetryPolicy(retries) if isinstance(retries, int) else retries
        self._owned = http_client is None
        self._http = http_client or httpx.Client(timeout=timeouts(timeout))

    def chat(
        self, image: Images, question: str, *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatAnswer:
        """The answer to a question about an image, or several in a list, or none (None). ChatOptions has the options.

        An image is a path, an http(s) or data URL, the bytes of a file, a PIL image or a numpy array.
        """
        return self.chat_messages([user(question, *sources(image))], model=model, **options)

    def stream(
        self, image: Images, question: str, *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> Stream:
        """The same answer piece by piece: `for piece in client.stream(...)`."""
        return self.stream_messages([user(question, *sources(image))], model=model, **options)

    def chat_messages(
        self, messages: Sequence[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> ChatAnswer:
        """The answer to a conversation; `covervlm.clients.user`, `assistant` and `system` make its messages."""
        return self._result(calls.chat(self._served(model), self._embedded(messages), **options))

    def stream_messages(
        self, messages: Sequence[Message], *, model: str | None = None, **options: Unpack[ChatOptions]
    ) -> Stream:
        """The same answer piece by piece."""

        def send() -> httpx.Response:
            call = calls.chat(self._served(model), self._embedded(messages), **options)
            return self._send(calls.streamed(call), stream=True)

        return Stream(send)

    def prune(
        self, image: ImageSource, question: str, *, model: str | None = None, **options: Unpack[PruneOptions]
    ) -> PruneResult:
        """Which vision tokens of an image a question keeps, without generating an answer."""
        messages = self._embedded([user(question, image)])
        return self._result(calls.prune(self._served(model), messages, **options))

    def models(self) -> list[Model]:
        """The served model, then its names with a budget."""
        return self._result(calls.list_models())

    def close(self) -> None:
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _served(self, model: str | None) -> str:
        """The name to ask for: the call's, the client's, or what the server serves."""
        name = model or self._model
        if name is None:
            name = self._model = self.models()[0].id
        return name

    def _embedded(self, messages: Sequence[Message]) -> Sequence[Message]:
        return with_images(messages, {url: self._fetch(url) for url in remote_images(messages)})

    def _fetch(self, url: str) -> bytes:
        download = Download(url)
        with connection_errors(), self._http.stream("GET", url, follow_redirects=True) as response:
            download.check(response)
            for part in response.iter_bytes():
                download.take(part)
        return download.data

    def _result(self, call: Call[Result]) -> Result:
        return read(call, self._send(call, stream=False))

    def _send(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        """A response that is a success, after as many tries as the policy allows; a streamed one is left open."""
        attempt = 0
        while True:
            try:
                return self._try(call, stream=stream)
            except APIError as error:
                delay = self._retries.delay(attempt, error)
                if delay is None:
                    raise
            sleep(delay)
            attempt += 1

    def _try(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        with connection_errors():
            request = self._http.build_request(**self._connection.request(call))
            response = self._http.send(request, stream=stream)
            if response.is_success:
                return response
            with closing(response):
                response.read()
        raise status_error(response)
