"""What a call can fail with, one class per kind of failure, and which failures are worth another try."""

import email.utils
import math
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import SSEError


class APIError(Exception):
    """Base of everything that a call raises, except for arguments that are wrong in themselves."""


class APIConnectionError(APIError):
    """The server could not be reached, or the connection broke. reached: whether the request may have arrived."""

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class APITimeoutError(APIConnectionError):
    """The server was reached, and sent nothing for longer than the timeout."""


class JobFailedError(APIError):
    """A job did not succeed. state: failed or cancelled. code: the reason as a name for programs."""

    def __init__(self, message: str, *, job: str, state: str, code: str | None = None) -> None:
        super().__init__(message)
        self.job = job
        self.state = state
        self.code = code


class ResponseFormatError(APIError):
    """The answer is not in a form that this client knows; the URL may not be that of a covervlm server."""


class APIStatusError(APIError):
    """The server refused the request or failed.

    status: the HTTP status; None for a failure in the middle of a stream. param: the field of the request that is
    wrong. code: the error's name for programs, e.g. model_not_found. request_id: the request's id in the server's
    log. retry_after: seconds that the server asks to wait before the next try.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        param: str | None = None,
        code: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.request_id = request_id
        self.retry_after = retry_after


class BadRequestError(APIStatusError):
    """400: the request is wrong; `param` names the field."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403: this API key may not do that."""


class NotFoundError(APIStatusError):
    """404: there is no such model, classifier, job or URL."""


class ConflictError(APIStatusError):
    """409: the current state of the resource does not allow this, e.g. the name is taken."""


class PayloadTooLargeError(APIStatusError):
    """413: the body is larger than the server accepts."""


class RateLimitError(APIStatusError):
    """429: this API key has sent too many requests, or has used up a quota."""


class ServerError(APIStatusError):
    """5xx: the server failed; the same request may work later."""


class OverloadedError(ServerError):
    """503: the queue is full, or the model is not ready."""


_BY_STATUS: dict[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: PayloadTooLargeError,
    429: RateLimitError,
    503: OverloadedError,
}


def status_error(response: httpx.Response) -> APIStatusError:
    """The exception for a response that is not a success; its body must have been read."""
    try:
        detail = response.json()["error"]
        message = str(detail["message"])
    except (ValueError, KeyError, TypeError):
        detail = {}
        message = f"HTTP {response.status_code} {response.reason_phrase}"
    kind = _BY_STATUS.get(response.status_code, ServerError if response.status_code >= 500 else APIStatusError)
    return kind(
        message,
        status=response.status_code,
        param=detail.get("param"),
        code=detail.get("code"),
        request_id=response.headers.get("x-request-id"),
        retry_after=_retry_after(response.headers.get("retry-after")),
    )


def stream_error(detail: dict[str, Any], request_id: str | None) -> APIStatusError:
    """The exception for an error event in a stream. detail: the event's `error` object."""
    overloaded = detail.get("code") in ("engine_overloaded", "engine_unavailable")
    kind = OverloadedError if overloaded else ServerError
    message = str(detail.get("message", "The server failed while it answered."))
    return kind(message, param=detail.get("param"), code=detail.get("code"), request_id=request_id)


@contextmanager
def connection_errors() -> Iterator[None]:
    """Turns httpx's exceptions into this package's."""
    try:
        yield
    except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise APIConnectionError("The server could not be reached in time.", reached=False) from error
    except httpx.TimeoutException as error:
        raise APITimeoutError("The server sent nothing for longer than the timeout.") from error
    except SSEError as error:
        raise ResponseFormatError(f"The server's answer is not an event stream. {error}.") from error
    except httpx.TransportError as error:
        message = f"The connection to the server failed: {error or type(error).__name__}."
        raise APIConnectionError(message, reached=not isinstance(error, httpx.ConnectError)) from error
    except httpx.RequestError as error:
        raise ResponseFormatError(f"The server's answer could not be read: {error}.") from error


@contextmanager
def format_errors(what: str) -> Iterator[None]:
    """Turns errors on reading an answer of an unknown form into a ResponseFormatError. what: names the answer."""
    try:
        yield
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ResponseFormatError(f"{what} does not come from a covervlm server; check the base URL.") from error


def _retry_after(header: str | None) -> float | None:
    """The seconds of a Retry-After header, which holds a number or a date; None where it holds neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return None


TEMPORARY = (408, 429, 502, 503, 504)
"""HTTP statuses after which the same request may succeed."""
REFUSED = (429, 503)
"""Those that say that the server has not started on the request."""


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential back-off with jitter, or the server's Retry-After where it sends one.

    retries: tries after the first. first_delay, longest_delay: seconds; the delay doubles from the one to the other.
    longest_retry_after: seconds; a server that asks for a longer wait is not tried again.
    """

    retries: int = 4
    first_delay: float = 0.5
    longest_delay: float = 8.0
    longest_retry_after: float = 60.0

    def delay(self, attempt: int, error: APIError, *, repeatable: bool = True) -> float | None:
        """Seconds to wait after try number `attempt` (from 0) failed with `error`; None where that is final.

        A timeout is final: the server may still be working on the request, and a second one would add to its load.
        So is a full quota: only deleting something helps. A call that is not `repeatable` is sent again only where
        the server cannot have begun on it.
        """
        if attempt >= self.retries or isinstance(error, APITimeoutError):
            return None
        if not repeatable and not _refused_untouched(error):
            return None
        if isinstance(error, APIStatusError):
            if error.status not in TEMPORARY or error.code == "quota_exceeded":
                return None
            if error.retry_after is not None:
                return error.retry_after if error.retry_after <= self.longest_retry_after else None
        elif not isinstance(error, APIConnectionError):
            return None
        # Clients that were refused at the same moment must not all come back at the same moment.
        longest = min(self.longest_delay, self.first_delay * math.pow(2, min(attempt, 30)))
        return longest * random.uniform(0.5, 1)


def _refused_untouched(error: APIError) -> bool:
    """Whether the server cannot have begun on the request: it refused it, or never received it."""
    if isinstance(error, APIStatusError):
        return error.status in REFUSED
    return isinstance(error, APIConnectionError) and not error.reached
