"""Pictures that are small to send and large or slow to decode, and what becomes of them on their way to the model."""

import asyncio
import functools
from collections.abc import Callable

from tests.e2e.attack import images
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.bodies import IMAGE_ROUTES, chat, classify
from tests.e2e.attack.registry import REFUSED, attack

SERVED = REFUSED | {200}
BAD = "data:image/png;base64,AAAA"
MIB = 2**20


@attack("a bad image beside seven large ones in a chat", answers=frozenset({400, 503}), make=images.large_png)
async def bad_beside_large(attacker: Attacker) -> None:
    await attacker.post("/v1/chat/completions", chat(BAD, *[images.large_png()] * 7))


@attack("a bad image after large ones, classified", answers=frozenset({400, 503}), make=images.large_png)
async def bad_after_large(attacker: Attacker) -> None:
    await attacker.post("/v1/classify", classify(*[images.large_png()] * 7, BAD))


@attack("a clip whose last frame is bad", answers=frozenset({400, 503}))
async def bad_frame(attacker: Attacker) -> None:
    frames = ",".join([images.png_base64(1000, 1000)] * 60 + ["AAAA"])
    body = chat(text="What?").replace(
        b'[{"type": "text"',
        b'[{"type": "video_url", "video_url": {"url": "data:video/png;base64,%s"}}, {"type": "text"' % frames.encode(),
    )
    await attacker.post("/v1/chat/completions", body)


@attack("large pictures from eight callers at once", answers=SERVED, make=images.large_png)
async def large_at_once(attacker: Attacker) -> None:
    body = chat(*[images.large_png()] * 2)
    await asyncio.gather(*(attacker.post("/v1/chat/completions", body) for _ in range(8)))


@attack("large WebP pictures of 71 bytes", answers=SERVED, make=images.webp_of_a_large_canvas)
async def large_webp(attacker: Attacker) -> None:
    body = classify(*[images.webp_of_a_large_canvas()] * 8)
    await asyncio.gather(*(attacker.post("/v1/classify", body) for _ in range(4)))


@attack("2,048 pictures of one pixel", answers=SERVED)
async def many_tiny(attacker: Attacker) -> None:
    await attacker.post("/v1/classify", classify(*[images.tiny_png()] * 2048))


@attack("2,048 pictures of one pixel embedded, twice at once", answers=SERVED)
async def many_tiny_embedded(attacker: Attacker) -> None:
    body = IMAGE_ROUTES["/v1/embeddings"](*[images.tiny_png()] * 2048)
    await asyncio.gather(*(attacker.post("/v1/embeddings", body) for _ in range(2)))


def thin(width: int, height: int) -> None:
    @attack(f"a picture of {width} x {height} pixels on every route", answers=SERVED)
    async def send(attacker: Attacker) -> None:
        url = images.url(images.png(width, height))
        await asyncio.gather(*(attacker.post(path, body(url)) for path, body in IMAGE_ROUTES.items()))


for size in ((1, 4000), (1, 20_000), (20_000, 1), (3, 1_000_000)):
    thin(*size)


def slow(name: str, url: Callable[[], str]) -> None:
    @attack(f"{name} on every route", answers=SERVED, make=url)
    async def send(attacker: Attacker) -> None:
        await asyncio.gather(*(attacker.post(path, body(url())) for path, body in IMAGE_ROUTES.items()))


slow("a JPEG of thousands of scans", functools.partial(images.jpeg_of_many_scans, 100_000))
slow("a PNG of 10 MiB of empty chunks", functools.partial(images.png_of_many_chunks, 10 * MIB))
slow("a PNG of 10 MiB of empty data chunks", functools.partial(images.png_of_empty_data, 10 * MIB))
slow("a JPEG of 10 MiB of empty comments", functools.partial(images.jpeg_of_many_comments, 10 * MIB))
slow("a GIF of 10 MiB of empty extensions", functools.partial(images.gif_of_many_extensions, 10 * MIB))
