"""Images and videos at http(s) URLs: fetched from checked addresses only, within limits on redirects, bytes and time.

A URL from a caller must not reach what only this machine reaches. So every address of a host is checked, and the
connection goes to a checked address itself: a name that resolves differently a moment later changes nothing.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from ipaddress import ip_address
from typing import cast

import httpx

from covervlm.server.core.fairness import FairTurns
from covervlm.server.core.pace import Pace
from covervlm.server.media.addresses import Address, AddressPolicy, literal_address
from covervlm.server.media.kinds import IMAGE, Kind
from covervlm.server.media.names import Names

Resolve = Callable[[str, int, str], Awaitable[Sequence[str]]]
"""Addresses of a host and port, for an owner."""

_AGENT = f"covervlm/{version('covervlm')}"  # read from the package's files, which takes longer than a request
_PART = 2**20
_LEAST = 4096
"""Bytes that a chunk costs as much as, however short."""
_UNHURRIED = Pace(time.monotonic, alone=lambda: True)
_CONNECTIONS = 64
"""Of which one owner has half at most: servers that drip or say nothing hold theirs for as long as a fetch may take."""


@dataclass(frozen=True)
class FetchLimits:
    """Redirects followed; seconds for a whole fetch, and for each step of it (connecting, reading a piece)."""

    max_redirects: int = 3
    total_timeout: float = 10.0
    read_timeout: float = 5.0


@cache
def _public_certificates() -> ssl.SSLContext:
    """Reading them takes 30 ms."""
    return httpx.create_ssl_context()


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
            verify=tls or _public_certificates(),
            trust_env=False,
            limits=httpx.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=0),
        )

    async def __call__(
        self,
        url: str,
        max_bytes: int,
        *,
        owner: str,
        hold: Callable[[int], None],
        pace: Pace = _UNHURRIED,
        kind: Kind = IMAGE,
    ) -> bytes:
        """The body behind the URL, at most max_bytes; `hold` is told of its bytes as they come, and may raise.

        pace: how fast the owner may go while others are there; what that takes is not the server's time behind the URL.

        Raises InvalidRequest, which reveals nothing of this network.
        """
        paced = _Paced(pace)
        try:
            async with (
                asyncio.timeout(self._limits.total_timeout) as paced.limit,
                self._turns.turn(owner, leaves=_CONNECTIONS // 2),
            ):
                return await self._follow(_parsed(url, kind), max_bytes, owner, hold, paced, kind)
        except (TimeoutError, httpx.TimeoutException):
            raise kind.invalid_url(
                f"Fetching the {kind.name} took too long; send the {kind.name} itself as a data URL."
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError):
            raise kind.invalid_url(
                f"The {kind.name} could not be fetched; check its URL, or send the {kind.name} as a data URL."
            ) from None
        finally:
            # It knows the task, whose error knows this and what was fetched: a circle would keep all that in memory.
            paced.limit = None

    async def aclose(self) -> None:
        self._names.close()
        await self._transport.aclose()

    async def _follow(
        self,
        url: httpx.URL,
        max_bytes: int,
        owner: str,
        hold: Callable[[int], None],
        paced: "_Paced",
        kind: Kind,
    ) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            await paced.connects()
            async with self._get(url, owner, kind) as response:
                if response.has_redirect_location:
                    url = _parsed(response.headers["location"], kind, url)
                    continue
                if response.status_code != 200:
                    raise kind.invalid_url(f"The {kind.name}'s URL answered with status {response.status_code}.")
                return await _body(response, max_bytes, hold, paced, kind)
        raise kind.invalid_url(f"The {kind.name}'s URL redirects more than {self._limits.max_redirects} times.")

    @asynccontextmanager
    async def _get(self, url: httpx.URL, owner: str, kind: Kind) -> AsyncIterator[httpx.Response]:
        """The response from the first of the host's addresses that takes a connection."""
        addresses = await self._addresses(url, owner, kind)
        for address in addresses:
            try:
                response = await self._transport.handle_async_request(self._request(url, address, kind))
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address == addresses[-1]:
                    raise
                continue
            try:
                yield response
            finally:
                await response.aclose()
            return

    async def _addresses(self, url: httpx.URL, owner: str, kind: Kind) -> list[Address]:
        """The host's addresses, all of which may be reached."""
        host, port = _host(url), url.port or (443 if url.scheme == "https" else 80)
        if not self._policy.allows_host(host):
            raise kind.invalid_url(
                f"This server does not fetch {kind.name}s from this URL's host; send the {kind.name} as a data URL."
            )
        try:
            literal = literal_address(host)
            addresses = [literal] if literal else [ip_address(text) for text in await self._resolve(host, port, owner)]
        except (OSError, UnicodeError, ValueError):
            addresses = []
        if not addresses or not all(self._policy.allows_address(address) for address in addresses):
            # The same words for both: callers must not learn which names resolve inside this network.
            raise kind.invalid_url(
                f"The host in the {kind.name}'s URL has no public address; send the {kind.name} as a data URL."
            )
        return list(dict.fromkeys(addresses))

    def _request(self, url: httpx.URL, address: Address, kind: Kind) -> httpx.Request:
        """A request to the address that looks, to the server and to TLS, like one to the host."""
        host = _host(url)
        return httpx.Request(
            "GET",
            url.copy_with(host=str(address)),
            headers={
                "Host": url.netloc.decode("ascii"),
                "Accept": f"{kind.name}/*",
                "Accept-Encoding": "identity",
                "Connection": "close",
                "User-Agent": _AGENT,
            },
            extensions={"timeout": self._timeout, "sni_hostname": host.rstrip(".")},
        )


class _Paced:
    """Waits as an owner's pace asks for, which the time limit of a fetch does not count."""

    limit: asyncio.Timeout | None = None

    def __init__(self, pace: Pace) -> None:
        self._pace = pace

    async def connects(self) -> None:
        await self._wait(self._pace.fetch())

    async def has_read(self, size: int) -> None:
        await self._wait(self._pace.fetched(max(size, _LEAST)))

    async def _wait(self, seconds: float) -> None:
        """At least until others have had their turn: what has come in tiny chunks is read without waiting for more."""
        if seconds and self.limit is not None and (end := self.limit.when()) is not None:
            self.limit.reschedule(end + seconds)
        await asyncio.sleep(seconds)


async def _body(
    response: httpx.Response, max_bytes: int, hold: Callable[[int], None], paced: _Paced, kind: Kind
) -> bytes:
    declared = response.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:20]) > max_bytes:
        raise kind.too_large(max_bytes, "bytes")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise kind.invalid_url(f"The {kind.name}'s URL answered with a compressed body.")
    parts, length = [bytearray()], 0  # one that grows to all of it is copied again and again
    async for piece in cast(httpx.AsyncByteStream, response.stream):
        length += len(piece)
        if length > max_bytes:
            raise kind.too_large(max_bytes, "bytes")
        hold(len(piece))
        if len(parts[-1]) >= _PART:
            parts.append(bytearray())
        parts[-1] += piece
        await paced.has_read(len(piece))
    return await asyncio.to_thread(b"".join, parts) if length > _PART else b"".join(parts)


def _parsed(url: str, kind: Kind, base: httpx.URL | None = None) -> httpx.URL:
    """base: where a redirect's URL was found, which may be relative to it."""
    try:
        parsed = httpx.URL(url) if base is None else httpx.URL(str(base.join(url)))
        if not 0 < (parsed.port or 80) < 65536:
            raise httpx.InvalidURL("port")
        host = parsed.host and _host(parsed)  # decoded and encoded, both of which can fail
    except (httpx.InvalidURL, ValueError):  # the standard library joins URLs and has its own error
        raise kind.invalid_url(f"The {kind.name}'s URL is malformed.") from None
    if parsed.scheme not in ("http", "https"):
        raise kind.invalid_url(
            f"{kind.name.title()}s are fetched from http and https URLs only; send this one as a data URL."
        )
    if not host:
        raise kind.invalid_url(
            f"The {kind.name}'s URL names no host; it must have the form https://host/path, or be a data URL."
        )
    if parsed.userinfo:
        raise kind.invalid_url(f"The {kind.name}'s URL must not carry a user name or password.")
    return parsed


def _host(url: httpx.URL) -> str:
    """The host as it is looked up: ASCII, international names in punycode."""
    return url.raw_host.decode("ascii")
