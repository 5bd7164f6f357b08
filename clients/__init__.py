"""Python client of a covervlm server, blocking and for asyncio; needs httpx and pillow, and no part of the server."""

from covervlm.clients.answers import ChatAnswer, Model, PrunedImage, PruneResult, Usage
from covervlm.clients.async_client import AsyncClient
from covervlm.clients.client import Client
from covervlm.clients.clip_answers import (
    Classification,
    Classifier,
    Cluster,
    Clustering,
    Embeddings,
    Session,
    Upload,
)
from covervlm.clients.conversations import ChatOptions, PruneOptions
from covervlm.clients.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    JobFailedError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    ResponseFormatError,
    ServerError,
)
from covervlm.clients.images import ImageSource
from covervlm.clients.jobs import Job
from covervlm.clients.messages import Message, assistant, system, user
from covervlm.clients.retries import RetryPolicy
from covervlm.clients.streaming import AsyncStream, Stream

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "AsyncClient",
    "AsyncStream",
    "AuthenticationError",
    "BadRequestError",
    "ChatAnswer",
    "ChatOptions",
    "Classification",
    "Classifier",
    "Client",
    "Cluster",
    "Clustering",
    "ConflictError",
    "Embeddings",
    "ImageSource",
    "Job",
    "JobFailedError",
    "Message",
    "Model",
    "NotFoundError",
    "OverloadedError",
    "PayloadTooLargeError",
    "PermissionDeniedError",
    "PruneOptions",
    "PruneResult",
    "PrunedImage",
    "RateLimitError",
    "ResponseFormatError",
    "RetryPolicy",
    "ServerError",
    "Session",
    "Stream",
    "Upload",
    "Usage",
    "assistant",
    "system",
    "user",
]
