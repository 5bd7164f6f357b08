"""Client: blocking calls to a covervlm server."""

from contextlib import closing
from time import sleep
from types import TracebackType
from typing import Any, Self

import httpx

from covervlm.clients import clusterings, conversations, embeddings, zero_shot
from covervlm.clients.calls import Call, Result
from covervlm.clients.classifiers import Classifiers
from covervlm.clients.connection import Connection, read, timeouts
from covervlm.clients.errors import APIError, connection_errors, status_error
from covervlm.clients.methods import blocking, streaming
from covervlm.clients.retries import RetryPolicy
from covervlm.clients.sessions import Sessions
from covervlm.clients.watching import Jobs
from covervlm.clients.web_images import Download, remote_images, with_images


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
        self.retries = RetryPolicy(retries) if isinstance(retries, int) else retries
        self._connection = Connection.to(base_url, api_key)
        self._model = model
        self._owned = http_client is None
        self._http = http_client or httpx.Client(timeout=timeouts(timeout))
        self.classifiers = Classifiers(self)
        self.sessions = Sessions(self)
        self.jobs = Jobs(self)

    chat = blocking(conversations.chat)
    stream = streaming(conversations.chat)
    chat_messages = blocking(conversations.chat_messages)
    stream_messages = streaming(conversations.chat_messages)
    prune = blocking(conversations.prune)
    models = blocking(conversations.models)
    embed_texts = blocking(embeddings.embed_texts)
    embed_images = blocking(embeddings.embed_images)
    classify = blocking(zero_shot.classify)
    cluster = blocking(clusterings.cluster)

    def send(self, call: Call[Result]) -> Result:
        """The result of a call; what all methods above do with theirs."""
        return read(call, self._tried(self._completed(call), stream=False))

    def open(self, call: Call[Any]) -> httpx.Response:
        """The response to a call once its headers are there; whoever reads it closes it."""
        return self._tried(self._completed(call), stream=True)

    def close(self) -> None:
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _completed(self, call: Call[Result]) -> Call[Result]:
        """The call with what only this client knows: the served model's name, and images from the web."""
        if call.lacks_model:
            call = call.with_model(self._served())
        return with_images(call, {url: self._fetch(url) for url in remote_images(call)})

    def _served(self) -> str:
        if self._model is None:
            self._model = self.models()[0].id
        return self._model

    def _fetch(self, url: str) -> bytes:
        download = Download(url)
        with connection_errors(), self._http.stream("GET", url, follow_redirects=True) as response:
            download.check(response)
            for part in response.iter_bytes():
                download.take(part)
        return download.data

    def _tried(self, call: Call[Any], *, stream: bool) -> httpx.Response:
        """A response that is a success, after as many tries as the policy allows; a streamed one is left open."""
        attempt = 0
        while True:
            try:
                return self._try(call, stream=stream)
            except APIError as error:
                delay = self.retries.delay(attempt, error, repeatable=call.repeatable)
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
