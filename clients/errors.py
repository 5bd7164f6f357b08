"""What a call can fail with: one class per kind of HTTP error, and what the server said about it."""

import email.utils
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx


class APIError(Exception):
    """Base of everything that a call raises once its arguments are in order."""


class APIConnectionError(APIError):
    """The server could not be reached, or the connection broke.

    reached: whether the request may have arrived.
    """

    def __init__(self, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.reached = reached


class APITimeoutError(APIConnectionError):
    """The server was reached, and sent nothing for longer than the timeout."""


class JobFailedError(APIError):
    """A job that was waited for did not succeed; `state` is failed or cancelled, `code` says why for programs."""

    def __init__(self, message: str, *, job: str, state: str, code: str | None = None) -> None:
        super().__init__(message)
        self.job = job
        self.state = state
        self.code = code


class ResponseFormatError(APIError):
    """Something answered, in a form that this client does not know; perhaps not a covervlm server."""


class APIStatusError(APIError):
    """The server refused or failed.

    status: of HTTP; None for a failure in the middle of a streamed answer. param: the offending field of the request.
    code: the error's name for programs, e.g. model_not_found. request_id: what the server's log knows the request by.
    retry_after: seconds after which the server asks to be tried again.
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
    """400: the request can never be served as it stands; `param` names the field."""


class AuthenticationError(APIStatusError):
    """401: the API key is missing or wrong."""


class PermissionDeniedError(APIStatusError):
    """403: this API key may not do that."""


class NotFoundError(APIStatusError):
    """404: no such model, classifier, job or URL."""


class ConflictError(APIStatusError):
    """409: the state of the thing does not allow that."""


class PayloadTooLargeError(APIStatusError):
    """413: the body has more bytes than the server takes."""


class RateLimitError(APIStatusError):
    """429: more requests than this API key may send."""


class ServerError(APIStatusError):
    """5xx: the server failed, and the same request may work later."""


class OverloadedError(ServerError):
    """503: no room in the queue, or the model is not ready."""


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
    """The error that a response, whose body has been read, stands for."""
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
    """The error that the last event of a failed stream stands for."""
    overloaded = detail.get("code") in ("engine_overloaded", "engine_unavailable")
    kind = OverloadedError if overloaded else ServerError
    message = str(detail.get("message", "The server failed while it answered."))
    return kind(message, param=detail.get("param"), code=detail.get("code"), request_id=request_id)


@contextmanager
def connection_errors() -> Iterator[None]:
    """Raises httpx's errors of the transport as this package's."""
    try:
        yield
    except (httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise APIConnectionError("The server could not be reached in time.", reached=False) from error
    except httpx.TimeoutException as error:
        raise APITimeoutError("The server sent nothing for longer than the timeout.") from error
    except httpx.TransportError as error:
        message = f"The connection to the server failed: {error or type(error).__name__}."
        raise APIConnectionError(message, reached=not isinstance(error, httpx.ConnectError)) from error
    except httpx.RequestError as error:
        raise ResponseFormatError(f"The server's answer could not be read: {error}.") from error


def _retry_after(header: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date."""
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
