"""Images by URL: names and servers that take their time, servers that never end, addresses that are not public."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.e2e.attack import images
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.bodies import chat, classify
from tests.e2e.attack.registry import REFUSED, attack

CLASSIFY = "/v1/classify"
LEFT = REFUSED | {0, 504}


@asynccontextmanager
async def image_server(kind: str) -> AsyncIterator[str]:
    """A server on loopback that answers a request for an image in a way of its own; its URL."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):  # as the attack ends
            await reader.readuntil(b"\r\n\r\n")
            head = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n"
            match kind:
                case "silent":
                    await asyncio.sleep(60)
                case "dripping":
                    writer.write(head)
                    for _ in range(600):
                        writer.write(b"x")
                        await writer.drain()
                        await asyncio.sleep(0.1)
                case "endless":
                    writer.write(head)
                    for _ in range(4000):
                        writer.write(bytes(65536))
                        await writer.drain()
                case "endless head":
                    for _ in range(100_000):
                        writer.write(b"HTTP/1.1 200 OK\r\n" if _ == 0 else b"X-Header: " + b"y" * 500 + b"\r\n")
                        await writer.drain()
                case "circle":
                    writer.write(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n")
                case "bomb":
                    data = images.png(images.LARGEST, images.LARGEST, "RGB")
                    writer.write(head[:-2] + b"Content-Length: %d\r\n\r\n" % len(data) + data)
                    await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def fetched(kind: str, name: str, requests: int, each: int) -> None:
    @attack(f"{requests * each} images from {name}", answers=LEFT | {200}, limit=25, make=images.large_png)
    async def send(attacker: Attacker) -> None:
        async with image_server(kind) as url:
            bodies = [classify(*[f"{url}/{i}-{j}" for j in range(each)]) for i in range(requests)]
            await asyncio.gather(*(attacker.post(CLASSIFY, body) for body in bodies))


fetched("silent", "a server that does not answer", 4, 16)
fetched("dripping", "a server that drips", 4, 16)
fetched("endless", "a server that never ends", 2, 8)
fetched("endless head", "a server whose head never ends", 2, 8)
fetched("circle", "a server that redirects to itself", 4, 16)
fetched("bomb", "a server that sends 49 megapixels", 2, 16)


@attack("32 names that resolve slowly, from two requests", answers=LEFT, limit=25, once=True)
async def slow_names(attacker: Attacker) -> None:
    bodies = [classify(*[f"http://n{i}-{j}.slow.test/a.png" for j in range(16)]) for i in range(2)]
    await asyncio.gather(*(attacker.post(CLASSIFY, body) for body in bodies))


@attack("2,048 names that resolve slowly, in one request, and nobody who waits", answers=LEFT, limit=25, once=True)
async def slow_names_left(attacker: Attacker) -> None:
    body = classify(*[f"http://m{i}.slow.test/a.png" for i in range(2048)])
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(2):
            await attacker.post(CLASSIFY, body)


INSIDE = (
    "http://168.63.129.16/metadata/instance", "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/",
    "http://100.100.100.200/latest/", "http://192.0.0.192/opc/v2/", "http://10.0.0.1/", "http://0.0.0.0:80/",
    "http://[::]/", "http://[::ffff:10.0.0.1]/", "http://[64:ff9b::a00:1]/", "http://[64:ff9b:1::a00:1]/",
    "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/", "http://metadata.google.internal/",
    "http://[fe80::1%25eth0]/", "http://[2002:a00:1::]/", "http://[::10.0.0.1]/", "http://xn--/", "http://xn--a/",
    "http://\u3002/", "http://a..b/", "http://" + "a" * 300 + "/", "http://[v1.x]/", "http://host:99999/", "http://",
    "http:///x", "http://user:secret@example.test/", "http://exa mple/", "http://%00/", "http://x\u0000y/", "ftp://x/",
    "gopher://10.0.0.1/", "file:///etc/passwd", "http://\ud800/".encode("utf-8", "replace").decode(), "http://xn--80ak6aa92e/",
)  # fmt: skip
"""What a fetch must not reach, and names that are none."""


@attack("addresses of the inside, and names that are none", answers=frozenset({400}), once=True, limit=30)
async def inside(attacker: Attacker) -> None:
    for url in INSIDE:
        began = asyncio.get_running_loop().time()
        answer = await attacker.post(CLASSIFY, classify(url))
        refused = answer.json()["error"]["code"] if answer.status == 400 else answer.status
        if refused not in ("invalid_image_url", "invalid_image"):
            attacker.complain(f"{url[:40]!r} brings {refused}")
        elif asyncio.get_running_loop().time() - began > 2 and "168.63" in url:
            attacker.complain(f"{url!r} was tried")


@attack("the same in a chat", answers=frozenset({400}), once=True, limit=30)
async def inside_chat(attacker: Attacker) -> None:
    for url in INSIDE:
        await attacker.post("/v1/chat/completions", chat(url))
