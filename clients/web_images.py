"""Images on the web become part of the request: servers need not fetch for others, so the client does."""

from collections.abc import Mapping
from typing import Any

import httpx

from covervlm.clients.calls import Call, Result
from covervlm.clients.images import data_url, is_remote

LARGEST_DOWNLOAD = 64 * 1024 * 1024
"""Bytes of an image that is fetched; what the server takes by default in a whole request."""


def remote_images(call: Call[Any]) -> list[str]:
    """The http(s) URLs of image parts in the call's body, each once."""
    found: dict[str, None] = {}
    _replace(call.body, lambda url: found.setdefault(url))
    return list(found)


def with_images(call: Call[Result], fetched: Mapping[str, bytes]) -> Call[Result]:
    """The call with the files in place of the URLs that they came from."""
    if not fetched:
        return call
    return call.replace(body=_replace(call.body, lambda url: data_url(fetched[url])))


class Download:
    """An image from the web as it comes in; too large a one is given up early."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._parts: list[bytes] = []
        self._size = 0

    def take(self, part: bytes) -> None:
        """Raises ValueError once there is more than fits in a request."""
        self._size += len(part)
        if self._size > LARGEST_DOWNLOAD:
            raise ValueError(f"the image at {self._url} has more than {LARGEST_DOWNLOAD} bytes")
        self._parts.append(part)

    def check(self, response: httpx.Response) -> None:
        """Raises ValueError for a response that is no success."""
        if not response.is_success:
            raise ValueError(f"the image at {self._url} cannot be fetched: HTTP {response.status_code}")

    @property
    def data(self) -> bytes:
        return b"".join(self._parts)


def _replace(body: Any, new_url: Any) -> Any:
    """A copy of a JSON value, in which every image part with an http(s) URL has what `new_url` makes of it."""
    if isinstance(body, list | tuple):
        return [_replace(item, new_url) for item in body]
    if not isinstance(body, Mapping):
        return body
    if body.get("type") == "image_url" and is_remote(body["image_url"]["url"]):
        return {**body, "image_url": {**body["image_url"], "url": new_url(body["image_url"]["url"])}}
    return {name: _replace(value, new_url) for name, value in body.items()}
