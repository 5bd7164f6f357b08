"""Where the server is and how to speak to it: address, key, headers, and how an answer is taken from a response."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, Self

import httpx

from covervlm.clients.calls import Call, Result
from covervlm.clients.errors import ResponseFormatError

BASE_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT = 10.0


@dataclass(frozen=True)
class Connection:
    """The server's address, without /v1, and headers for every request to it."""

    base_url: str
    headers: Mapping[str, str] = field(repr=False)

    @classmethod
    def to(cls, base_url: str | None, api_key: str | None) -> Self:
        """The environment's COVERVLM_BASE_URL and COVERVLM_API_KEY stand in for what is not given.

        Raises ValueError for a base URL that is none. OpenAI's form of it, which ends in /v1, is fine.
        """
        url = (base_url or os.environ.get("COVERVLM_BASE_URL") or BASE_URL).rstrip("/").removesuffix("/v1")
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"base_url starts with http:// or https://, unlike {url!r}")
        headers = {"User-Agent": f"covervlm-python/{version('covervlm')} ({platform.python_version()})"}
        key = api_key or os.environ.get("COVERVLM_API_KEY")
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return cls(url, headers)

    def request(self, call: Call[Any]) -> dict[str, Any]:
        """The arguments of httpx's build_request; the key goes along with requests to the server, and only there."""
        headers = {**self.headers, **call.headers}
        arguments: dict[str, Any] = {"method": call.method, "url": self.base_url + call.path, "headers": headers}
        if call.body is not None:
            arguments["json"] = call.body
        if call.content is not None:
            arguments["content"] = call.content
        if call.timeout is not None:
            arguments["timeout"] = timeouts(call.timeout)
        return arguments


def timeouts(seconds: float) -> httpx.Timeout:
    """`seconds` without a byte from the server; a connection that cannot be made is known sooner."""
    return httpx.Timeout(seconds, connect=min(seconds, CONNECT_TIMEOUT))


def read(call: Call[Result], response: httpx.Response) -> Result:
    """The call's result from a response that is a success. Raises ResponseFormatError."""
    try:
        return call.read(response.content if call.binary else response.json())
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ResponseFormatError(f"The answer to {call.method} {call.path} is not a covervlm server's.") from error
