"""Python client of a covervlm server, blocking and for asyncio; needs httpx and pillow, and no part of the server."""

from covervlm.clients.answers import ChatAnswer, Model, PrunedImage, PruneResult, Usage
from covervlm.clients.async_client import AsyncClient
from covervlm.clients.calls import ChatOptions, PruneOptions
from covervlm.clients.client import Client
from covervlm.clients.errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
    PermissionDeniedError,
    RateLimitError,
    ResponseFormatError,
    ServerError,
)
from covervlm.clients.images import ImageSource
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
    "Client",
    "ConflictError",
    "ImageSource",
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
    "Stream",
    "Usage",
    "assistant",
    "system",
    "user",
]
