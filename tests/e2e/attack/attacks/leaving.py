"""Callers who ask for much and leave: nobody works for them, and nothing is kept for them."""

import asyncio

from tests.e2e.attack import images
from tests.e2e.attack.attacker import Attacker
from tests.e2e.attack.bodies import chat, classify, embed
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.target import STRICT

SERVED = REFUSED | {0, 200}


async def leave(attacker: Attacker, path: str, body: object, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await attacker.post(path, body)
    except TimeoutError:
        return


@attack("300 pictures to classify, and nobody who waits", answers=SERVED, once=True)
async def classify_and_leave(attacker: Attacker) -> None:
    await leave(attacker, "/v1/classify", classify(*[images.small_jpeg()] * 300), 0.8)


@attack("2,048 texts to embed, and nobody who waits", answers=SERVED, once=True)
async def embed_and_leave(attacker: Attacker) -> None:
    await leave(attacker, "/v1/embeddings", {"input": [f"a picture of {i} stars" for i in range(2048)]}, 0.8)


@attack("two dozen requests with large pictures, and nobody who waits", answers=SERVED, make=images.large_png)
async def large_and_leave(attacker: Attacker) -> None:
    body = embed(*[images.large_png()] * 4)
    await asyncio.gather(*(leave(attacker, "/v1/embeddings", body, 0.5) for _ in range(24)))


@attack("a hundred long answers, and nobody who waits", answers=SERVED)
async def chat_and_leave(attacker: Attacker) -> None:
    body = chat(images.small_jpeg(), max_tokens=400, ignore_eos=True)
    await asyncio.gather(*(leave(attacker, "/v1/chat/completions", body, 0.3) for _ in range(100)))


@attack("a hundred streams that are never read", answers=SERVED, once=True, options=STRICT)
async def never_read(attacker: Attacker) -> None:
    body = chat(max_tokens=400, ignore_eos=True, stream=True, n=8, temperature=1.0, logprobs=True, top_logprobs=20)
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer key-of-the-attacker\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    for _ in range(100):
        reader, writer = await attacker.connect()
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(head.encode() + body)
    await asyncio.sleep(5)


@attack("a job of 2,000 pictures from a caller who leaves before it is queued", answers=SERVED, once=True)
async def job_and_leave(attacker: Attacker) -> None:
    body = {"aspect": "color", "words": ["red", "blue"], "images": [images.small_jpeg()] * 2000}
    await leave(attacker, "/v1/clusterings", body, 0.8)
    await asyncio.sleep(1)
    listed = (await attacker.request("GET", "/v1/jobs", counted=False)).json()["data"]
    for job in listed:
        await attacker.request("DELETE", f"/v1/jobs/{job['id']}", counted=False)
