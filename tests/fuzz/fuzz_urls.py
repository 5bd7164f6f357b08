"""URLs of images to fetch, their redirects, and file URLs: nothing but public addresses is ever connected to.

Lines: the URL, then the location of each redirect, in turn.
"""

import asyncio
import tempfile
from ipaddress import ip_address
from pathlib import Path

import httpx

from covervlm.server.core.errors import InvalidRequest
from covervlm.server.media.addresses import AddressPolicy
from covervlm.server.media.data_urls import url_scheme
from covervlm.server.media.fetch import Fetcher, FetchLimits
from covervlm.server.media.files import read_media_file

TRACED = ("covervlm.server.media", "httpx", "idna", "ipaddress", "urllib.parse")
NAMES = {"public.test": "93.184.216.34", "private.test": "10.0.0.7", "six.test": "2606:2800:220:1::1"}
BODY = b"an image"

loop = asyncio.new_event_loop()
folder = tempfile.TemporaryDirectory()
(Path(folder.name) / "a.png").write_bytes(BODY)


class Network(httpx.AsyncBaseTransport):
    """Redirects to each of the locations, then answers."""

    def __init__(self, locations: list[bytes]) -> None:
        self._locations = locations

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert ip_address(request.url.host.strip("[]")).is_global, request.url
        if self._locations:
            return httpx.Response(302, headers=[(b"location", self._locations.pop(0))])
        return httpx.Response(200, stream=httpx.ByteStream(BODY))


async def resolve(host: str, port: int, owner: str) -> list[str]:
    if (name := host.lower().rstrip(".")) not in NAMES:
        raise OSError("no such name")
    return [NAMES[name]]


def target(data: bytes) -> None:
    line, *locations = data.split(b"\n")
    url = line.decode(errors="replace")
    try:
        if url_scheme(url) == "file":
            got = read_media_file(url.strip(), Path(folder.name), 100)
        else:
            fetcher = Fetcher(AddressPolicy(), FetchLimits(), resolve=resolve, transport=Network(locations))
            got = loop.run_until_complete(fetcher(url, 100, owner="me", hold=lambda size: None))
    except InvalidRequest as refused:
        assert refused.code == "invalid_image_url"
        assert str(refused).isprintable()
    else:
        assert got == BODY
