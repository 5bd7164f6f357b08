"""Range and If-Range headers on the page's files: the very bytes that were asked for, never more than a few times."""

import asyncio
import re

from covervlm.server.api.routes import playground

TRACED = ("starlette.responses", "covervlm.server.api.routes.playground")
FILE = playground._UI / "app.js"
WHOLE = FILE.read_bytes()
ONE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

loop = asyncio.new_event_loop()


def target(data: bytes) -> None:
    asked, _, condition = data.partition(b"\n")
    headers = [(b"range", asked)] + ([(b"if-range", condition)] if condition else [])
    status, said, body = loop.run_until_complete(get(headers))
    assert status in (200, 206, 400, 416), status
    if status in (200, 206):
        assert int(said["content-length"]) == len(body)
        assert len(body) <= 4 * len(WHOLE)
    if status == 200:
        assert body == WHOLE
    elif status == 206 and (span := ONE.fullmatch(said.get("content-range", ""))):
        first, last, size = map(int, span.groups())
        assert (size, body) == (len(WHOLE), WHOLE[first : last + 1])


async def get(headers: list[tuple[bytes, bytes]]) -> tuple[int, dict[str, str], bytes]:
    sent: list[dict] = []

    async def receive() -> dict:
        return await asyncio.Future()  # the client waits

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "headers": headers, "path": "/ui/app.js", "extensions": {}}
    await playground.FileResponse(FILE, headers=playground._HEADERS)(scope, receive, send)
    start, *rest = sent
    said = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
    return start["status"], said, b"".join(part.get("body", b"") for part in rest)
