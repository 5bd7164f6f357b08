"""Python client of a covervlm server, blocking and for asyncio; needs httpx, httpx-sse and pillow, and no server."""

from covervlm.clients.classifiers import Classification, Classifier
from covervlm.clients.client import AsyncClient, Client
from covervlm.clients.clusterings import Cluster, Clustering
from covervlm.clients.conversations import (
    ChatAnswer,
    ChatOptions,
    Message,
    Model,
    PrunedImage,
    PruneOptions,
    PruneResult,
    Usage,
    assistant,
    system,
    user,
)
from covervlm.clients.embeddings import Embeddings
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
    RetryPolicy,
    ServerError,
)
from covervlm.clients.examples import Upload
from covervlm.clients.explanations import Explanation
from covervlm.clients.images import ImageSource
from covervlm.clients.jobs import Job
from covervlm.clients.projections import SearchSpace
from covervlm.clients.streaming import AsyncStream, Stream
from covervlm.clients.streams import ImageStream
from covervlm.clients.videos import Video

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
    "Explanation",
    "ImageSource",
    "ImageStream",
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
    "SearchSpace",
    "ServerError",
    "Stream",
    "Upload",
    "Usage",
    "Video",
    "assistant",
    "system",
    "user",
]
