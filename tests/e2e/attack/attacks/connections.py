"""Connections: many, slow, in tiny pieces, without a key, and more of them than the server may have files open."""

import asyncio
import contextlib
import re

from tests.e2e.attack.attacker import Attacker, parsed
from tests.e2e.attack.bodies import chat
from tests.e2e.attack.registry import REFUSED, attack
from tests.e2e.attack.target import ATTACKER, STRICT, Target

MIB = 2**20
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
KEY = f"Authorization: Bearer {ATTACKER}\r\n".encode()
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
ENDED = REFUSED | {0, 401, 408}


async def stream(attacker: Attacker, head: bytes, pieces: list[bytes]) -> None:
    answer = await attacker.exchange(head, *pieces)
    attacker.answers[answer.status] += 1


def one_byte_chunks(size: int) -> list[bytes]:
    return [b"1\r\n \r\n" * (size // 6)]


@attack("2 MiB of one-byte chunks without a key", answers=ENDED)
async def chunks_without_key(attacker: Attacker) -> None:
    await stream(attacker, POST + CHUNKED, one_byte_chunks(2 * MIB))


@attack("2 MiB of one-byte chunks with a key", answers=ENDED)
async def chunks_with_key(attacker: Attacker) -> None:
    await stream(attacker, POST + KEY + CHUNKED, one_byte_chunks(2 * MIB))


@attack("2 MiB of one-byte chunks to /health", answers=ENDED | {200, 405})
async def chunks_to_health(attacker: Attacker) -> None:
    await stream(
        attacker, POST.replace(b"POST /v1/chat/completions", b"GET /health") + CHUNKED, one_byte_chunks(2 * MIB)
    )


@attack("chunks with long extensions", answers=ENDED)
async def chunk_extensions(attacker: Attacker) -> None:
    await stream(attacker, POST + KEY + CHUNKED, [(b"1;" + b"x" * 1000 + b"\r\n \r\n") * 4000])


@attack("a body in packets of one byte", answers=ENDED, limit=8)
async def byte_by_byte(attacker: Attacker) -> None:
    _, writer = await attacker.connect()
    writer.transport.get_extra_info("socket").setsockopt(6, 1, 1)  # TCP_NODELAY
    writer.write(POST + KEY + b"Content-Length: 1000000\r\n\r\n")
    with contextlib.suppress(OSError):
        for _ in range(20_000):
            writer.write(b" ")
            await asyncio.sleep(0)
            await writer.drain()


@attack("60 MiB of a body that a missing key refuses", answers=ENDED)
async def refused_body(attacker: Attacker) -> None:
    await attacker.request("POST", "/v1/chat/completions", b" " * (60 * MIB), key=None)


@attack("2,000 requests behind one another on one connection", answers=ENDED | {404})
async def pipelined(attacker: Attacker) -> None:
    request = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n" + KEY + b"\r\n"
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    await stream(attacker, request * 2000 + last, [])


@attack("heads of 60 KB on a hundred connections", answers=ENDED | {200, 404, 431})
async def large_heads(attacker: Attacker) -> None:
    head = b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: y\r\n" % i for i in range(6000)) + b"\r\n"
    await asyncio.gather(*(stream(attacker, head, []) for _ in range(100)))


async def drip(attacker: Attacker, begun: bytes, connections: int, seconds: float) -> None:
    """Open connections that send a byte each half second, and check that the server ends them."""
    pairs = [await attacker.connect() for _ in range(connections)]
    for _, writer in pairs:
        writer.write(begun)
    end = asyncio.get_running_loop().time() + seconds
    # Read as it comes: what is sent after an answer may break the connection, and the answer is then lost.
    answers = [asyncio.ensure_future(reader.read()) for reader, _ in pairs]
    while asyncio.get_running_loop().time() < end and not all(answer.done() for answer in answers):
        for (_, writer), answer in zip(pairs, answers, strict=True):
            if not answer.done():
                writer.write(b"x")
        await asyncio.wait(answers, timeout=0.5)
    for answer in answers:
        if answer.done():
            attacker.answers[0 if answer.exception() else parsed(answer.result()).status] += 1
    open_ = sum(not answer.done() for answer in answers)
    for answer in answers:
        answer.cancel()
    if open_:
        attacker.complain(f"{open_} of {connections} slow connections are still open after {seconds:.0f} s")


@attack("heads that drip, on 200 connections", answers=ENDED, once=True, options=STRICT)
async def slow_heads(attacker: Attacker) -> None:
    await drip(attacker, b"GET /health HTTP/1.1\r\nX: ", 200, 8)


@attack("bodies that drip, on 200 connections", answers=ENDED, once=True, options=STRICT)
async def slow_bodies(attacker: Attacker) -> None:
    await drip(attacker, POST + KEY + b"Content-Length: 100000\r\n\r\n{", 200, 8)


@attack("chunks that drip without a key, on 200 connections", answers=ENDED, once=True, options=STRICT)
async def slow_chunks(attacker: Attacker) -> None:
    await drip(attacker, POST + CHUNKED + b"fffff\r\n", 200, 8)


@attack("a thousand connections that say nothing", answers=ENDED, once=True, options=STRICT)
async def silent(attacker: Attacker) -> None:
    pairs = [await attacker.connect() for _ in range(1000)]
    end = asyncio.get_running_loop().time() + 6
    while asyncio.get_running_loop().time() < end and not all(reader.at_eof() for reader, _ in pairs):
        await asyncio.sleep(0.2)
    if open_ := sum(not reader.at_eof() for reader, _ in pairs):
        attacker.complain(f"{open_} of 1000 silent connections are still open after 6 s")


def log_lines(target: Target) -> int:
    return target.written().count("\n")


@attack("200 connections where 128 files may be open", once=True, kept=True, answers=ENDED)
async def too_many(attacker: Attacker) -> None:
    before = log_lines(attacker.target)
    attacker.target.limit_files(128)
    try:
        for _ in range(200):
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    await attacker.connect()
        await asyncio.sleep(4)
        lines = log_lines(attacker.target) - before
        # The well-behaved caller's own requests have lines too, at most thirty a second.
        text = attacker.target.written()
        failures = len(re.findall(r"Too many open files|accept", text))
        if failures > 60:
            attacker.complain(f"{lines} lines of the log in six seconds, {failures} about accepting")
    finally:
        attacker.target.limit_files(20_000)


@attack("connections opened and ended at once, as fast as they go", answers=ENDED)
async def churn(attacker: Attacker) -> None:
    for _ in range(500):
        _, writer = await attacker.connect()
        attacker.drop(writer)


@attack("forty callers of one key at once", answers=REFUSED | {200})
async def many_requests(attacker: Attacker) -> None:
    await asyncio.gather(*(attacker.post("/v1/chat/completions", chat(text=f"What is {i}?")) for i in range(40)))
