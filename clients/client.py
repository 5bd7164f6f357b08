"""Client and AsyncClient: calls to a covervlm server, blocking and for asyncio."""

from typing import Self

import httpx

from covervlm.clients import classifiers, clusterings, conversations, embeddings, explanations
from covervlm.clients.calls import AsyncHttp, BlockingHttp, Connection, timeouts
from covervlm.clients.classifiers import AsyncClassifiers, Classifiers
from covervlm.clients.errors import RetryPolicy
from covervlm.clients.jobs import AsyncJobs, Jobs
from covervlm.clients.methods import Asyncio, Blocking, method
from covervlm.clients.projections import AsyncProjections, Projections
from covervlm.clients.streaming import AsyncStream, Stream, streaming
from covervlm.clients.streams import AsyncStreams, Streams


class _Methods:
    chat = method(conversations.chat)
    stream = streaming(conversations.chat)
    chat_messages = method(conversations.chat_messages)
    stream_messages = streaming(conversations.chat_messages)
    prune = method(conversations.prune)
    models = method(conversations.models)
    embed_texts = method(embeddings.embed_texts)
    embed_images = method(embeddings.embed_images)
    classify = method(classifiers.classify)
    classify_points = method(classifiers.classify_points)
    explain = method(explanations.explain)
    cluster = method(clusterings.cluster)


class Client(_Methods, Blocking):
    """Calls to one server. Safe to share between threads; close it, or use it in a `with` block.

    base_url: by default COVERVLM_BASE_URL, else http://127.0.0.1:8000. api_key: by default COVERVLM_API_KEY.
    model: by default what the server serves. timeout: seconds without a byte from the server.
    retries: a count, or a whole RetryPolicy. http_client: an httpx.Client with its own proxies or certificates, which
    stays open. All calls raise subclasses of covervlm.clients.APIError, and OSError, TypeError or ValueError for
    images that cannot be read.
    """

    _stream = Stream

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
        self._owned = http_client is None
        self._http = http_client or httpx.Client(timeout=timeouts(timeout))
        super().__init__(Connection(BlockingHttp(self._http), base_url, api_key, model, retries))
        self.classifiers = Classifiers(self._connection)
        self.projections = Projections(self._connection)
        self.streams = Streams(self._connection)
        self.jobs = Jobs(self._connection)

    def close(self) -> None:
        if self._owned:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient(_Methods, Asyncio):
    """Client for asyncio: the same arguments, methods and errors. Close it, or use it in an `async with` block."""

    _stream = AsyncStream

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
        self._owned = http_client is None
        self._http = http_client or httpx.AsyncClient(timeout=timeouts(timeout))
        super().__init__(Connection(AsyncHttp(self._http), base_url, api_key, model, retries))
        self.classifiers = AsyncClassifiers(self._connection)
        self.projections = AsyncProjections(self._connection)
        self.streams = AsyncStreams(self._connection)
        self.jobs = AsyncJobs(self._connection)

    async def close(self) -> None:
        if self._owned:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
