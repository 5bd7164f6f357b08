"""Every failure as an answer in OpenAI's error schema; nothing of the server's inside shows in it."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from covervlm.server.access import RateLimited
from covervlm.server.engines.base import EngineError, EngineOverloaded, EngineUnavailable, InvalidRequest
from covervlm.server.resources import ResourceError

logger = logging.getLogger("covervlm.api")

MODEL_NOT_FOUND = "model_not_found"
UNSUPPORTED_PARAMETER = "unsupported_parameter"
UNAVAILABLE_SECONDS = 5
"""When to ask again a server that loads, stops or has failed: time for a balancer to choose another replica."""


class ErrorDetail(BaseModel):
    """What went wrong: for people (`message`) and for programs (`type`, `param`, `code`)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every response that is no success."""

    error: ErrorDetail


RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
"""How routes document their failures."""


@dataclass(frozen=True)
class Failure:
    """A failure ready to be sent, as a response or as the last event of a stream."""

    status: int
    detail: ErrorDetail
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        return ErrorBody(error=self.detail).model_dump()

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, headers=dict(self.headers))


def failure(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Failure:
    """A failure with the type that OpenAI's API gives this status."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    detail = ErrorDetail(message=printable(message), type=kind, param=param and printable(param), code=code)
    return Failure(status, detail, headers or {})


def describe(error: Exception, request_id: str) -> Failure:
    """The failure that the caller is told of; what the caller cannot mend is logged and told by its request id."""
    match error:
        case InvalidRequest():
            status = 404 if error.code == MODEL_NOT_FOUND else 400
            return failure(status, str(error), param=error.param, code=error.code)
        case ResourceError():
            return failure(error.status, str(error), param=error.param, code=error.code)
        case RateLimited():
            wait = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            return failure(429, str(error), code="rate_limit_exceeded", headers=wait)
        case EngineOverloaded():
            retry_after = {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
            return failure(503, str(error), code="engine_overloaded", headers=retry_after)
        case EngineUnavailable():
            headers = {"Retry-After": str(UNAVAILABLE_SECONDS)}
            return failure(503, str(error), code="engine_unavailable", headers=headers)
        case MemoryError():
            logger.error("request %s found no memory", request_id, exc_info=error)
            message = "There is not enough memory for this request right now; send it again later."
            return failure(503, message, code="engine_overloaded", headers={"Retry-After": str(UNAVAILABLE_SECONDS)})
        case EngineError():
            logger.error("request %s failed in the engine: %s", request_id, error)
            return failure(500, str(error), code="engine_error")
    logger.error("request %s failed", request_id, exc_info=error)
    return failure(500, f"The server failed to answer this request. Its id is {request_id}.", code="internal_error")


def respond(failure: Failure, scope: Scope) -> JSONResponse:
    """The failure as a response, its code noted for the request's line in the log."""
    scope["state"]["record"].error = failure.detail.code
    return failure.response()


def install(app: FastAPI) -> None:
    """Give the app handlers for everything but bugs, which the outermost middleware answers."""

    async def engine_error(request: Request, error: Exception) -> Response:
        return respond(describe(error, request.state.request_id), request.scope)

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(_validation(error.errors()[0], error.body), request.scope)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(_http(request, error), request.scope)

    app.add_exception_handler(EngineError, engine_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(HTTPException, http_error)


def _http(request: Request, error: HTTPException) -> Failure:
    method, path = request.method, request.scope["path"][:200]
    match error.status_code:
        case 404:
            return failure(404, f"Invalid URL ({method} {path})", code="unknown_url")
        case 405:
            message = f"{path} does not accept {method} requests."
            return failure(405, message, code="method_not_supported", headers=error.headers)
        case 400:
            return failure(400, "The body is not valid JSON in UTF-8.", code="invalid_json")
        case 503:
            return failure(503, str(error.detail), code="engine_overloaded", headers=error.headers)
    return failure(error.status_code, str(error.detail), headers=error.headers)


def _validation(error: Mapping[str, Any], body: Any) -> Failure:
    kind, message = str(error["type"]), str(error["msg"])
    param = parameter_name(error["loc"][1:], body)
    if kind == "json_invalid":
        where = f"{error['ctx']['error']} at character {error['loc'][-1]}"
        return failure(400, f"The body is not valid JSON: {where}.", code="invalid_json")
    if param is None and kind in ("missing", "model_attributes_type", "dict_type", "model_type"):
        message = "The body must be a JSON object, sent with Content-Type: application/json."
        return failure(400, message, code="invalid_json")
    if kind == "missing":
        return failure(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if kind == "extra_forbidden":
        return failure(400, f"Unknown parameter: '{param}'.", param=param, code="unknown_parameter")
    if kind == UNSUPPORTED_PARAMETER:
        return failure(400, message, param=param, code=kind)
    text = message.removeprefix("Value error, ")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return failure(400, f"Invalid '{param or 'body'}': {text[:1].lower()}{text[1:]}.", param=param, code=code)


def parameter_name(location: Sequence[str | int], body: Any) -> str | None:
    """A validation error's location as a path into the body, e.g. messages[0].content[1].image_url.url.

    pydantic also names the branches of unions; what the body does not have is such a branch, except at the end,
    where it is the missing field itself.
    """
    name, value = "", body
    for depth, step in enumerate(location):
        if isinstance(step, int) and isinstance(value, list) and step < len(value):
            name, value = f"{name}[{step}]", value[step]
        elif isinstance(step, str) and isinstance(value, dict) and (step in value or depth == len(location) - 1):
            name, value = f"{name}.{step}" if name else step, value.get(step)
    return name[:200] or None


def printable(text: str) -> str:
    """Text that can be sent as UTF-8, whatever the request smuggled into it."""
    return text.encode("utf-8", "replace").decode("utf-8")
