"""Every failure in its API's error schema, OpenAI's or Anthropic's, without internal details of the server."""

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Scope

from covervlm.server.api.exchange import event
from covervlm.server.core.errors import (
    EngineError,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    RateLimited,
    ResourceError,
)
from covervlm.server.core.wire import UNKNOWN

logger = logging.getLogger("covervlm.api")

MODEL_NOT_FOUND = "model_not_found"
UNSUPPORTED_PARAMETER = "unsupported_parameter"
UNAVAILABLE_SECONDS = 5
"""Retry-After of a server that loads, stops or has failed: time for a load balancer to choose another replica."""


class ErrorDetail(BaseModel):
    """What went wrong: for people (`message`) and for programs (`type`, `param`, `code`)."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every response that reports a failure."""

    error: ErrorDetail


class MessagesErrorDetail(BaseModel):
    type: str
    message: str


class MessagesErrorBody(BaseModel):
    """The same in the words of Anthropic's API, for its paths."""

    type: Literal["error"]
    error: MessagesErrorDetail
    request_id: str


MESSAGES = "/v1/messages"
"""Where Anthropic's API begins."""
_ANTHROPICS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}}
"""How routes document their failures."""
MESSAGES_RESPONSES: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": MessagesErrorBody},
    "5XX": {"model": MessagesErrorBody},
}


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

    def messages_body(self, request_id: str) -> dict[str, Any]:
        """For Anthropic's API, whose errors name the field in their message alone."""
        kind = _ANTHROPICS.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
        message, param = self.detail.message, self.detail.param
        if param is not None and f"'{param}'" not in message:
            message = f"{param}: {message}"
        error = MessagesErrorDetail(type=kind, message=message)
        return MessagesErrorBody(type="error", error=error, request_id=request_id).model_dump()


class InvalidBody(HTTPException):
    """A body that is refused; an HTTPException, because the framework takes any other for a bug of its own parser."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.status)
        self.failure = failure


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
    """The failure to answer with; one that is the server's own is logged, and names only the request id."""
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
            logger.error("request %s failed for lack of memory", request_id, exc_info=error)
            message = "There is not enough memory for this request right now; send it again later."
            return failure(503, message, code="engine_overloaded", headers={"Retry-After": str(UNAVAILABLE_SECONDS)})
        case EngineError():
            logger.error("request %s failed in the engine: %s", request_id, error)
            return failure(500, str(error), code="engine_error")
    logger.error("request %s failed", request_id, exc_info=error)
    return failure(500, f"The server failed to answer; report the request's id, {request_id}.", code="internal_error")


def respond(failure: Failure, scope: Scope) -> JSONResponse:
    """The failure as a response, its code noted for the request's line in the log."""
    scope["state"]["record"].error = failure.detail.code
    if not speaks_messages(scope):
        return failure.response()
    body = failure.messages_body(scope["state"]["request_id"])
    return JSONResponse(body, failure.status, headers=dict(failure.headers))


def last_event(failure: Failure, scope: Scope) -> str:
    """The failure at the end of a stream that has begun."""
    if speaks_messages(scope):
        return event(json.dumps(failure.messages_body(scope["state"]["request_id"])), "error")
    return event(json.dumps(failure.body))


def speaks_messages(scope: Scope) -> bool:
    return bool(scope["path"] == MESSAGES or scope["path"].startswith(f"{MESSAGES}/"))


def install(app: FastAPI) -> None:
    """Install the handlers of expected failures; unexpected exceptions are answered by the outermost middleware."""

    async def engine_error(request: Request, error: Exception) -> Response:
        return respond(describe(error, request.state.request_id), request.scope)

    async def validation_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return respond(validation_failure(error.errors()[0]), request.scope)

    async def invalid_body(request: Request, error: Exception) -> Response:
        assert isinstance(error, InvalidBody)
        return respond(error.failure, request.scope)

    async def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return respond(_http(request, error), request.scope)

    app.add_exception_handler(EngineError, engine_error)
    app.add_exception_handler(RequestValidationError, validation_error)
    app.add_exception_handler(InvalidBody, invalid_body)
    app.add_exception_handler(HTTPException, http_error)


def _http(request: Request, error: HTTPException) -> Failure:
    method, path = request.method, request.scope["path"][:200]
    match error.status_code:
        case 404:
            return failure(404, f"Invalid URL ({method} {path}); {_advice(request.app, path)}.", code="unknown_url")
        case 405:
            message = f"{path} does not accept {method} requests; send {(error.headers or {}).get('Allow', 'another')}."
            return failure(405, message, code="method_not_supported", headers=error.headers)
        case 400:
            return failure(400, "The body is not valid JSON in UTF-8.", code="invalid_json")
        case 503:
            return failure(503, str(error.detail), code="engine_overloaded", headers=error.headers)
    return failure(error.status_code, str(error.detail), headers=error.headers)


def _advice(app: Any, path: str) -> str:
    """Where a path that is not served may have meant to go: mostly a client's base URL lacks /v1, or has it twice."""
    known = {getattr(route, "path", "") for route in app.routes}
    for meant in (f"/v1{path}", path.removeprefix("/v1"), path.rstrip("/")):
        if meant in known:
            return f"is it {meant}? Clients in OpenAI's style take a base URL that ends in /v1, Anthropic's one without"
    return "GET /openapi.json lists the paths of this server"


def validation_failure(error: Mapping[str, Any]) -> Failure:
    """The failure for a pydantic error, whose location begins with "body", "query" or the like."""
    kind, message = str(error["type"]), str(error["msg"]).removeprefix("Value error, ")
    _, *location = error["loc"]
    param = parameter_name(location)
    if param is None and kind in ("missing", "dict_type", "model_type", "model_attributes_type"):
        message = "The body must be a JSON object, sent with Content-Type: application/json."
        return failure(400, message, code="invalid_json")
    if kind == "missing":
        return failure(400, f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if kind == UNKNOWN:
        name, nearest = error["ctx"]["name"], error["ctx"]["nearest"]
        param = parameter_name([*location, name])
        advice = f"; did you mean '{nearest}'?" if nearest else "."
        return failure(400, f"Unknown parameter: '{param or name}'{advice}", param=param, code=UNKNOWN)
    if kind == UNSUPPORTED_PARAMETER:
        return failure(400, message, param=param, code=kind)
    if kind == "model_type":
        message = "should be an object"
    text = f"{message[:1].lower()}{message[1:]}".replace(" after validation", "")
    code = "invalid_type" if kind.endswith("_type") else "invalid_value"
    return failure(400, f"Invalid '{param or 'body'}': {text}.", param=param, code=code)


def parameter_name(location: Sequence[str | int]) -> str | None:
    """A validation error's location as a path into the body, e.g. messages[0].content[1].image_url.url.

    pydantic also names the branches of unions, which the bodies' types have tags like <text> for.
    """
    name = ""
    for step in location:
        if isinstance(step, int):
            name = f"{name}[{step}]"
        elif not step.startswith("<"):
            name = f"{name}.{step}" if name else step
    return name[:200] or None


def printable(text: str) -> str:
    """Text that can be sent as UTF-8, whatever the request smuggled into it."""
    return text.encode("utf-8", "replace").decode("utf-8")
