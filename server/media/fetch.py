"""Images at http(s) URLs: fetched from checked addresses only, within limits on redirects, bytes and time.

A URL from a caller must not reach what only this machine reaches. So every address of a host is checked, and the
connection goes to a checked address itself: a name that resolves differently a moment later changes nothing.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from ipaddress import ip_address
from typing import cast

import httpx

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.core.fairness import FairTurns
from covervlm.server.media.addresses import Address, AddressPolicy, literal_address
from covervlm.server.media.data_urls import too_large
from covervlm.server.media.names import Names

Resolve = Callable[[str, int, str], Awaitable[Sequence[str]]]
"""Addresses of a host and port, for an owner."""

_CONNECTIONS = 64
"""Of which one owner has half at most: servers that drip or say nothing hold theirs for as long as a fetch may take."""


@dataclass(frozen=True)
class FetchLimits:
    """Redirects followed; seconds for a whole fetch, and for each step of it (connecting, reading a piece)."""

    max_redirects: int = 3
    total_timeout: float = 10.0
    read_timeout: float = 5.0


class Fetcher:
    """Gets the bytes behind a URL without proxies, credentials, cookies or connections that outlive a request."""

    def __init__(
        self,
        policy: AddressPolicy,
        limits: FetchLimits,
        *,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._policy = policy
        self._limits = limits
        self._names = Names()
        self._resolve = resolve or self._names
        self._turns = FairTurns(_CONNECTIONS)
        step = limits.read_timeout
        self._timeout = {"connect": step, "read": step, "write": step, "pool": limits.total_timeout}
        # Connections are not kept: one made for a host must never serve another that shares its address.
        self._transport = transport or httpx.AsyncHTTPTransport(
            verify=tls or httpx.create_ssl_context(),
            trust_env=False,
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=0),
        )

    async def __call__(self, url: str, max_bytes: int, *, owner: str, hold: Callable[[int], None]) -> bytes:
        """The body behind the URL, at most max_bytes; `hold` is told of its bytes as they come, and may raise.

        Raises InvalidRequest, which reveals nothing of this network.
        """
        try:
            async with (
                asyncio.timeout(self._limits.total_timeout),
                self._turns.turn(owner, leaves=_CONNECTIONS // 2),
            ):
                return await self._follow(_parsed(url), max_bytes, owner, hold)
        except (TimeoutError, httpx.TimeoutException):
            raise _refused("Fetching the image took too long; send the image itself as a data URL.") from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
            raise _refused("The image could not be fetched; check its URL, or send the image as a data URL.") from None

    async def aclose(self) -> None:
        self._names.close()
        await self._transport.aclose()

    async def _follow(self, url: httpx.URL, max_bytes: int, owner: str, hold: Callable[[int], None]) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            async with self._get(url, owner) as response:
                if response.has_redirect_location:
                    url = _parsed(str(url.join(response.headers["location"])))
                    continue
                if response.status_code != 200:
                    raise _refused(f"The image's URL answered with status {response.status_code}.")
                return await _body(response, max_bytes, hold)
        raise _refused(f"The image's URL redirects more than {self._limits.max_redirects} times.")

    @asynccontextmanager
    async def _get(self, url: httpx.URL, owner: str) -> AsyncIterator[httpx.Response]:
        """The response from the first of the host's addresses that takes a connection."""
        addresses = await self._addresses(url, owner)
        for address in addresses:
            try:
                response = await self._transport.handle_async_request(self._request(url, address))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return

    async def _addresses(self, url: httpx.URL, owner: str) -> list[Address]:
        """The host's addresses, all of which may be reached."""
        host, port = _host(url), url.port or (443 if url.scheme == "https" else 80)
        if not self._policy.allows_host(host):
            raise _refused("This server does not fetch images from this URL's host; send the image as a data URL.")
        try:
            literal = literal_address(host)
            addresses = [literal] if literal else [ip_address(text) for text in await self._resolve(host, port, owner)]
        except (OSError, UnicodeError, ValueError):
            addresses = []
        if not addresses or not all(self._policy.allows_address(address) for address in addresses):
            # The same words for both: callers must not learn which names resolve inside this network.
            raise _refused("The host in the image's URL has no public address; send the image as a data URL.")
        return list(dict.fromkeys(addresses))

    def _request(self, url: httpx.URL, address: Address) -> httpx.Request:
        """A request to the address that looks, to the server and to TLS, like one to the host."""
        host = _host(url)
        return httpx.Request(
            "GET",
            url.copy_with(host=str(address)),
            headers={
                "Host": url.netloc.decode("ascii"),
                "Accept": "image/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
                "User-Agent": f"covervlm/{version('covervlm')}",
            },
            extensions={"timeout": self._timeout, "sni_hostname": host.rstrip(".")},
        )


async def _body(response: httpx.Response, max_bytes: int, hold: Callable[[int], None]) -> bytes:
    declared = response.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise too_large(max_bytes, "bytes")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise _refused("The image's URL answered with a compressed body.")
    body = bytearray()
    async for piece in cast(httpx.AsyncByteStream, response.stream):
        if len(body) + len(piece) > max_bytes:
            raise too_large(max_bytes, "bytes")
        hold(len(piece))
        body += piece
    return bytes(body)


def _parsed(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url)
        if not 0 < (parsed.port or 80) < 65536:
            raise httpx.InvalidURL("port")
        host = parsed.host and _host(parsed)  # decoded and encoded, both of which can fail
    except (httpx.InvalidURL, UnicodeError):
        raise _refused("The image's URL is malformed.") from None
    if parsed.scheme not in ("http", "https") or not host:
        raise _refused("Images are fetched from http and https URLs only.")
    if parsed.userinfo:
        raise _refused("The image's URL must not carry a user name or password.")
    return parsed


def _host(url: httpx.URL) -> str:
    """The host as it is looked up: ASCII, international names in punycode."""
    return url.raw_host.decode("ascii")


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="invalid_image_url")
